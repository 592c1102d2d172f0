"""Hold pinned fact sheets of models, datasets, benchmarks and devices, as data."""
