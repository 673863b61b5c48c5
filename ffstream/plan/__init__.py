"""How much memory, disk space and time a run takes, and how it is made to fit. Imports `training` and below."""
