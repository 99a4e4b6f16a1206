"""Small nets whose training is known: what became of them, and how well readings at the start had told it."""
