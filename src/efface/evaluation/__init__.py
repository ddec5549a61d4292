"""Evaluation: prompts, judged images, metrics and records."""
