"""One network for all steps of the path."""
