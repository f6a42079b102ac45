"""WHICH organism, style, base and audit: the recipe and the run that wires train and audit together."""
