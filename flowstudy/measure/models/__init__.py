"""How any model is taken apart: a copy, its layers and their signals, and autograd's graph cut into factors."""
