"""Hugging Face directories: what they say, in all its versions; read and written."""
