"""Artifacts that nobody should load, made in code, most with a payload that leaves a mark; tried on a real host."""
