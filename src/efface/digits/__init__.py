"""Digits: the model whose prompt is 8 numbers."""
