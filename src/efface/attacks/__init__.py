"""One file per attack; the file name is the registration."""
