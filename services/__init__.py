"""The services of modelyard. Layers and import rules are in pyproject.toml, checked by `make imports`."""
