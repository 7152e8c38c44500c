"""The engine: which tokens run when, on a backend. It knows ids, no files and no Hub."""
