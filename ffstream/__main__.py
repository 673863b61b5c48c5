"""`python -m ffstream`."""

from ffstream.cli import main

if __name__ == "__main__":
    main()
