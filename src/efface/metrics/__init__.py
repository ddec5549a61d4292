"""Metrics: say how well an edit did. One file each; the file name is the registration."""
