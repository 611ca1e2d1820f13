"""Things to run and read: the demo, and the zoo of real models that it serves."""
