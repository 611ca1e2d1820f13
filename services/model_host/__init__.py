"""The model host: computes on one device. Its order of events is in `lifecycle` and `batch_queue`."""
