"""`python -m flowstudy.cli`."""

from . import app

app()
