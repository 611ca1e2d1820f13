"""The resource manager: how many of what, where. Its order of events is in `reconciler`."""
