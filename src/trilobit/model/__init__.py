"""What a model is, in numpy: its shape, its arithmetic, its layouts. No files, no text."""
