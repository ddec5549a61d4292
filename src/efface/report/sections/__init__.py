"""Sections of a report, one file each, with ORDER and `render(page)`, which returns HTML."""
