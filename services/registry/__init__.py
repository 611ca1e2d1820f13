"""The registry: what exists, as numbered revisions. Its order of events is in `apply`."""
