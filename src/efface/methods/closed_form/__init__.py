"""What closed-form methods share: text vectors, least squares, the edit they return."""
