"""Helpers that do not depend on models: files, progress, seeds."""
