"""Methods on whole slices."""
