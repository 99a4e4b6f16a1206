"""Will it train: the tangent kernel, a short trial, and a reading of both."""
