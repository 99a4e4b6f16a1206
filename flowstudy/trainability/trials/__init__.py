"""A short trial: copies of a model really learn for some steps at the usual learning rates."""
