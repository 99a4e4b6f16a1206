"""Nets of one structure stacked, so that one matrix product serves them all, and their steps."""
