"""Files, locks, processes, interrupts, seeds and units; nothing here knows of networks. Imports `errors` alone."""
