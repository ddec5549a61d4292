"""Reports: image grids, tables, and one self-contained page; all pure functions of values."""
