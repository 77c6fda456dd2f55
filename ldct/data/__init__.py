"""Manifest and shards to batches, in an order that is a function of (seed, epoch)."""
