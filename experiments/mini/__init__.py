"""The embedded model mini, rebuilt: its data, its training, its judges and its measurements."""
