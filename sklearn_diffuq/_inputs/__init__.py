"""What the user gives, as batches of tensors."""
