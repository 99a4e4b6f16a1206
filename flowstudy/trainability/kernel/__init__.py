"""The empirical tangent kernel of a model and a batch, and its predictions of how the loss falls."""
