"""Training steps of fully connected nets on a GPU in four launches, written in Triton."""
