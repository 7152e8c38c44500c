"""Guessing ahead: where guesses come from (`lookup`), and how many of them pay (`drafts`)."""
