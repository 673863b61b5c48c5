"""What a user can set, and the values that each setting may have. Imports `ground`."""
