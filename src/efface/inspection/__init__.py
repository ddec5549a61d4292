"""What a file or folder is: edits, keys, findings, records, LoRA, checkpoints; from headers alone, without torch."""
