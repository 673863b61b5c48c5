"""Measurements beside a run: memory against depth, where time goes. Imports `run` and below."""
