"""Shared parts of searches over contexts."""
