"""Edits as values: what changes a model, its arithmetic, its file, its provenance."""
