"""mini: the embedded text-to-image model, its judge's networks and its concept table."""
