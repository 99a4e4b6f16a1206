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
    """Give a dict to fill, and print it as JSON at the end; anything else that is printed meanwhile is discarded."""
    found: dict[str, object] = {}
    if not as_json:
        yield found
        return
    with contextlib.redirect_stdout(io.StringIO()):
        yield found
    typer.echo(json.dumps(plain(found), indent=1, allow_nan=False))


def plain(value: object) -> object:
    """The value as JSON can hold it: nan becomes None, infinities become the strings "inf" and "-inf"."""
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
