"""The empirical tangent kernel of a model and a batch, and what it predicts."""
