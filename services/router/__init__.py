"""The router: entry, choice and balancing. Its order of events is in `pipeline`."""
