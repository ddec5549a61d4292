"""A bench: many methods, attacks and concepts on one model, from one file, into one folder of records."""
