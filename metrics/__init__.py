"""Quality, memorisation and retrieval figures over any iterable of uint8 image batches."""
