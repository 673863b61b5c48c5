"""`python -m ffstream`."""

from ffstream.entry import main

if __name__ == "__main__":
    main()
