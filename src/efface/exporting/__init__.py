"""What exports share: architectures, the names that other tools read, the model an edit is for, checks of outputs."""
