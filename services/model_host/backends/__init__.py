"""Frameworks that run models, behind one interface."""
