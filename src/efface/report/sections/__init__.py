"""Sections of a report: one file each, found by name; each has ORDER and `render(page)`, which returns HTML."""
