"""The engine: which tokens run when, on the native decoder. `LLM` is its face."""
