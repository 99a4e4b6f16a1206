"""In which dtype a model is measured."""
