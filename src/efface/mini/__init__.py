"""mini: the embedded text-to-image model, its judges' networks and its tables."""
