"""`python -m trilobit` is the `trilobit` command."""

from .cli import main

if __name__ == "__main__":
    main()
