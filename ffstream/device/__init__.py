"""The device and its memory, and what in a machine affects the bits of results. Imports `ground`."""
