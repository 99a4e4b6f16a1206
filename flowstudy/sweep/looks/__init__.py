"""The measurements of `run`: each takes a group of same-structure cells at one moment and returns tidy rows."""
