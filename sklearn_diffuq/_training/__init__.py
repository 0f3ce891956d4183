"""The training loop of every network."""
