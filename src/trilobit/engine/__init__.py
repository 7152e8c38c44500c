"""The engine: which tokens run when, on a backend. It knows ids and numbers, no files and no Hub."""
