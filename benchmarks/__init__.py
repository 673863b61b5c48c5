"""The figures that ffstream must reach, each run by `make bench`."""
