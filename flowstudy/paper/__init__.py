"""The paper's published numbers, and its claims held against what was measured."""
