"""Judges: say what an image shows. One file each; the file name is the registration."""
