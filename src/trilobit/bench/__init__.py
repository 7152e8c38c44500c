"""Measuring speed and memory, beside what the machine can do at most."""
