"""Foretell the gain of a training run before it is made, and say how often that held."""
