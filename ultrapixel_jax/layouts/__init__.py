"""Files of others: reading them, whatever their format, and the names of their tensors."""
