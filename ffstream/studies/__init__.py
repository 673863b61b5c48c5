"""Studies of runs and machines, such as memory against depth and where time goes. Imports `run` and below."""
