"""Every decision, pure: facts in, decision out. No clock, no chance, no log, no metric, no I/O."""
