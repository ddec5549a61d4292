"""Experiments: what made the embedded models, and what was measured with them. Not part of the package."""
