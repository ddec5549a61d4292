"""What the LoRA formats share: factors of a difference, and the file they are written to."""
