"""The same network trained by others, beside ffstream."""
