"""Training steps of fully connected nets as C that is compiled on the spot: a processor core to a net at a time."""
