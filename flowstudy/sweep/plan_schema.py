"""The JSON schema of plan files, with which editors complete and check them."""

import typing
from types import NoneType, UnionType

from flowstudy.data.datasets import DATASETS
from flowstudy.kinds import KINDS
from flowstudy.nets import ACTIVATIONS, SCHEMES

from .cells import DECAY_LAWS, PAPER_RANGES, Cell
from .looks.table import AS_THEY_START, MEASUREMENTS, options_of
from .plan_file import SEARCH_ARGUMENTS

CHOICES = {"net": KINDS, "activation": ACTIVATIONS, "init": SCHEMES, "dataset": DATASETS}
AS_NUMBER = {"type": "string", "pattern": r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"}  # 1e-3, which YAML takes for a word
RANGE = {"type": "object", "required": ["range"], "additionalProperties": False, "properties": {"range": {
    "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}]}}}
ANY_OF_THESE = "of these, or a list: every combination"


def plan_schema() -> dict[str, object]:
    """The schema as plain data (draft 2020-12), made from the arguments of `grid`, `random_search` and measurements."""
    fields = {name: field_schema(name, hint) for name, hint in typing.get_type_hints(Cell).items()}
    together = [name for name in MEASUREMENTS if name not in AS_THEY_START]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A plan of flowstudy", "type": "object", "additionalProperties": False,
        "anyOf": [{"required": ["grid"]}, {"required": ["random_search"]}],
        "properties": {
            "measure": {"anyOf": [{"enum": list(MEASUREMENTS)},
                                  {"type": "array", "items": {"enum": together}, "minItems": 1}]},
            "options": {"type": "object", "additionalProperties": False, "properties": option_schemas()},
            "grid": one_or_more(mapping({name: one_or_more(field) for name, field in fields.items()})),
            "random_search": one_or_more(mapping(search_schemas(fields), required=["n"])),
        },
    }


def field_schema(name: str, hint: object) -> dict[str, object]:
    """The schema of a single value of a cell's field, from its type hint."""
    if name in CHOICES:
        return {"enum": list(CHOICES[name])}
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    schemas = [{"type": "integer"} if kind is int else {"anyOf": [{"type": "number"}, AS_NUMBER]} if kind is float
               else {"type": "null"} for kind in kinds if kind in (int, float, NoneType)]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def one_or_more(one: dict[str, object]) -> dict[str, object]:
    several = {"type": "array", "items": one, "minItems": 1}
    whole = {"type": "integer"} in (one, *one.get("anyOf", ()))
    return {"anyOf": [one, several, *[RANGE] * whole]}


def mapping(properties: dict[str, object], required: tuple[str, ...] | list[str] = ()) -> dict[str, object]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def search_schemas(fields: dict[str, dict]) -> dict[str, object]:
    """Schemas of the arguments of `random_search`: ranges of the drawn fields, single values of the fixed ones.

    Nets, depths and activations may have several values.
    """
    number = {"anyOf": [{"type": "number"}, AS_NUMBER]}
    ends = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    own = {
        "n": {"type": "integer", "minimum": 1}, "net": one_or_more(fields["net"]), "seed": fields["seed"],
        "depth": one_or_more(fields["depth"]), "decay_law": {"enum": list(DECAY_LAWS)},
        "ranges": mapping({name: one_or_more(fields[name]) if name in CHOICES else ends for name in PAPER_RANGES}),
        "init": {"anyOf": [fields["init"], mapping({name: fields["init"] for name in ACTIVATIONS})]},
    }
    assert own.keys() == set(SEARCH_ARGUMENTS)
    return fields | own


def option_schemas() -> dict[str, object]:
    """Schemas of the options of all measurements together; `read_plan` checks which measurement takes which."""
    epochs, steps = ({"anyOf": [one, {"type": "array", "items": one}, RANGE]}
                     for one in ({"type": "integer", "minimum": -1}, {"type": "integer", "minimum": 0}))
    known = {"at": {"type": "object", "additionalProperties": False, "minProperties": 1,
                    "properties": {"epochs": epochs, "steps": steps}},
             "precision": {"enum": ["float32", "tf32"]}, "samples": {"type": "integer", "minimum": 1},
             "part": {"enum": ["all", "body"]}}
    return {name: known.get(name, {}) for measure in MEASUREMENTS for name in options_of(measure)}
