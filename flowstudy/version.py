"""The version, readable without installation.

It is written in the source, so that a copied tree that was never installed knows it too.
"""

VERSION = "0.1.0"  # as in pyproject.toml
