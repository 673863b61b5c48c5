"""What a run directory holds, and the protocol by which it is committed. Imports `field` and below."""
