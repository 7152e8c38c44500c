"""Text to token ids and back: tokenizers, chats as one text, ends of an output."""
