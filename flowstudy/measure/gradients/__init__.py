"""Gradients by layer, of one model or of a stack of nets, and the sentence that sums them up."""
