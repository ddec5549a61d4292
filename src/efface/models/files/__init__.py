"""Checkpoints: load a pipeline, read and write single weights on disk."""
