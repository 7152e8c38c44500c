"""From files of text to windows of tokens."""
