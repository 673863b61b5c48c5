"""The training of one layer, and the passes through frozen ones. Imports `cache` and below."""
