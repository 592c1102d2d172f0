"""Choose data, method, samples and epochs for a model, and which runs to make first."""
