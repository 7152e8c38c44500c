"""The server: models behind HTTP, in the dialects that clients speak (extra `[server]`)."""
