"""Measure what a dataset is to a base model, and what training did to its weights."""
