"""What the formats share that are a copy of a whole checkpoint with other values for some weights."""
