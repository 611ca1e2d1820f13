"""What integration tests start and stop."""
