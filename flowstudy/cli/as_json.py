"""`--json`: one object on standard output instead of a screen, for programs."""

import contextlib
import io
import json
import math
from collections.abc import Iterator, Mapping

import pandas as pd
import typer


@contextlib.contextmanager
def answer(as_json: bool) -> Iterator[dict[str, object]]:
    """What is put into the dict is printed at the end, and nothing else, whatever the user's code prints too."""
    found: dict[str, object] = {}
    if not as_json:
        yield found
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield found
    typer.echo(json.dumps(plain(found), indent=1, allow_nan=False))


def plain(value: object) -> object:
    """As JSON has it, which knows neither nan nor infinity."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, pd.DataFrame):
        return plain(value.to_dict("records"))
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    value = value.item() if hasattr(value, "item") else value  # numpy's scalars
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value if isinstance(value, str | int | float | bool | None) else str(value)
