"""The dtype in which a model is measured, and the tensors that are brought to it."""
