"""What every command shares: how it fails, files written atomically, work over processes."""
