"""Evaluation: which images to generate, what judges and metrics say of them, records."""
