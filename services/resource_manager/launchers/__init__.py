"""Ways to keep host processes running."""
