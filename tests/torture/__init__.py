"""Whether a run survives: it is crashed, starved and corrupted at every point where that can be done."""
