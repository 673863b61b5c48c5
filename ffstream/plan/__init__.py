"""What a run takes of memory, disk and time, and how it is made to fit. Imports `training` and below."""
