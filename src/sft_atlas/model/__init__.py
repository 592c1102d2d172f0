"""Load models, adapt them, and ask them: likelihoods and greedy text."""
