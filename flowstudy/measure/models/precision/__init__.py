"""In which dtype a model is measured, and what of it has that dtype."""
