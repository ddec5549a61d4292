"""Digits with prompts of 8 numbers: the experiment in which every prompt can be tried."""
