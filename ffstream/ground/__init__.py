"""Files, locks, processes, interrupts, seeds and units. Knows nothing of networks and imports only `errors`."""
