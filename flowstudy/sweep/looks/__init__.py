"""What `run` can measure: same-structure cells in, tidy rows out."""
