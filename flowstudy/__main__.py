"""`python -m flowstudy`."""

from flowstudy.cli import app

app(prog_name="flowstudy")
