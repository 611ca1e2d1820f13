"""Measurements of the mesh. Not tests: nothing here passes or fails."""
