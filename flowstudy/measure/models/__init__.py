"""Taking any model apart: copying it, finding its layers and signals, cutting autograd's graph into factors."""
