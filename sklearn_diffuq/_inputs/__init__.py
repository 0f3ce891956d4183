"""User data as batches of tensors."""
