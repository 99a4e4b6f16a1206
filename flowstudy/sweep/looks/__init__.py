"""What `run` can measure: a group of same-structure cells at one moment in, tidy rows out."""
