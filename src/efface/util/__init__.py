"""Helpers that know nothing of models: files, progress."""
