"""What a user can set, and what each setting may be. Imports `ground`."""
