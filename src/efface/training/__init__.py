"""Training: one resumable loop."""
