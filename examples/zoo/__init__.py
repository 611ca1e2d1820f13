"""Real models of five modalities, their manifests, and what prepares them."""
