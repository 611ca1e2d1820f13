"""Values every layer shares. Standard library only; no I/O, no chance, and no time but through `clock`."""
