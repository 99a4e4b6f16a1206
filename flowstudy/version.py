"""This version, where nothing need be installed to read it: a tree that is only copied says it too."""

VERSION = "0.1.0"  # as in pyproject.toml
