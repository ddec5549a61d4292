"""mini: the embedded text-to-image model, its data, its training and its judges."""
