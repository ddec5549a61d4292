"""Reports: image grids, tables, verdicts, and one self-contained page."""
