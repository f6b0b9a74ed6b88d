"""`python -m llamalab`: the command line."""

from llamalab.cli import main

if __name__ == "__main__":
    main()
