"""What searches over contexts share."""
