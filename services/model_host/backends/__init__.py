"""Frameworks that run models, behind one interface; `base` declares it, `loading` chooses one by name."""
