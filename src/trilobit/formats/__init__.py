"""Readers and writers of model files. Each normalises what it reads, once."""
