"""Measurements of the mesh. Not tests: nothing here passes or fails but `guard`, which compares with a record."""
