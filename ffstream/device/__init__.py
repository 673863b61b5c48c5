"""The device and its memory, and what of a machine decides bits. Imports `ground`."""
