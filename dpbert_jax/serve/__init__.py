"""The server: when a batch starts, what it may spend, and the protocols that clients speak."""
