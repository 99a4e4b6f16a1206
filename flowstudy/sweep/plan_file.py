"""Plans as YAML files for the command line: the arguments of `grid`, `random_search` and `run` by their names."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from flowstudy.refusal import did_you_mean

from .cells import CELL_FIELDS, MOST_CELLS, Cell, grid, random_search
from .plan import check_measures
from .plan_error import PlanError

SEARCH_ARGUMENTS = [name for name, p in inspect.signature(random_search).parameters.items() if p.kind != p.VAR_KEYWORD]
SECTIONS = {"grid": (grid, CELL_FIELDS), "random_search": (random_search, [*SEARCH_ARGUMENTS, *CELL_FIELDS])}
KNOWN = ["measure", "options", *SECTIONS]


@dataclass(frozen=True)
class PlanFile:
    """The arguments for `run` that a plan file holds."""

    cells: list[Cell]
    measure: str | list[str]
    options: dict[str, object]


def read_plan(path: Path, measure: str | list[str] | None = None) -> PlanFile:
    """Read and check a whole plan; `measure` overrides the file's.

    `flowstudy sweep --help` shows one.  The file is a mapping of `measure` (one or a list, as in `run`; training_loss
    if left out), `options` of the measurements, and `grid` and `random_search`, each a mapping of that function's
    arguments or a list of such mappings.  Where a list of whole numbers is meant, `{range: 20}` is 0 to 19 and
    `{range: [5, 20]}` is 5 to 19.

    Raises:
        ValueError, TypeError: unreadable YAML, an unknown key (with the one that was probably meant), a wrong value.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainYaml)  # a SafeLoader
        check_entries(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, EntriesError) as error:
        raise PlanError(f"sweep: `plan` must be a YAML file that can be read, got {path}: "
                        f"{' '.join(str(error).split())}") from None
    check_mapping(path, content, KNOWN)
    cells = [cell for name, (build, known) in SECTIONS.items() for section in as_list(content.get(name))
             for cell in build(**arguments(f"{path}: {name}", section, known))]
    if not cells:
        raise PlanError(f"sweep: {path} must have a section `grid` or `random_search`, got "
                        f"{', '.join(content) or 'nothing'}.")
    measure = measure or content.get("measure", "training_loss")
    if not isinstance(measure, str) and not (isinstance(measure, list) and all(isinstance(m, str) for m in measure)):
        raise PlanError(f"sweep: {path}: `measure` must be a name or a list of names, got {measure!r}.")
    options = arguments(f"{path}: options", content.get("options") or {}, None)
    check_measures(measure, options, cells)
    return PlanFile(list(dict.fromkeys(cells)), measure, options)


class EntriesError(ValueError):
    """A file's anchors stand for far more entries than the file has room for."""


def check_entries(content: object) -> None:
    """Count a file's entries before its anchors are expanded, since nested anchors may stand for any number of them."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_CELLS:
            raise EntriesError(f"its anchors come to more than {MOST_CELLS:,} entries")
        waiting += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []


class PlainYaml(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys and numbers that YAML reads otherwise than a person would."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuse a key that occurs twice, of which YAML would keep only the last."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key}` is there twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def plain_number(self, node: yaml.ScalarNode) -> int | float:
        """Refuse numbers such as 010 (8 in YAML), 0x10 (16) and 1:30 (90)."""
        written = node.value.lstrip("+-")
        if ":" in written or (len(written) > 1 and written[0] == "0" and written[1] not in ".eE"):
            raise yaml.constructor.ConstructorError(
                None, None, f"the number {node.value} must be written without a leading 0 and colons", node.start_mark)
        whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for tag in ("int", "float"):
    PlainYaml.add_constructor(f"tag:yaml.org,2002:{tag}", PlainYaml.plain_number)


def arguments(where: str, section: object, known: Iterable[str] | None) -> dict[str, object]:
    check_mapping(where, section, known)
    for name, value in section.items():
        if found := re.fullmatch(r"\s*range\((.*)\)\s*", value) if isinstance(value, str) else None:
            ends = found[1] if "," not in found[1] else f"[{found[1]}]"
            raise PlanError(f"sweep: {where}: `{name}` must be numbers, names or lists of them, got {value!r}, "
                            f"which is Python. Write {{range: {ends}}}.")
    return {name: as_python(value) for name, value in section.items()}


def as_python(value: object) -> object:
    """YAML's values as Python's: ranges written out, and 1e-3 a number, which YAML takes for a word."""
    if isinstance(value, Mapping) and set(value) == {"range"}:
        ends = as_list(value["range"])
        if not (1 <= len(ends) <= 2 and all(isinstance(end, int) for end in ends)):
            raise PlanError(f"sweep: `range` must be a whole number or two, got {value['range']!r}.")
        if len(range(*ends)) > MOST_CELLS:
            raise PlanError(f"sweep: `range` must be of at most {MOST_CELLS:,} numbers, got {value['range']!r}.")
        return list(range(*ends))
    if isinstance(value, Mapping):
        return {name: as_python(one) for name, one in value.items()}
    if isinstance(value, list):
        return [as_python(one) for one in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def as_list(value: object) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def check_mapping(where: object, section: object, known: Iterable[str] | None) -> None:
    if not isinstance(section, Mapping):
        raise PlanError(f"sweep: {where} must be a mapping of names to values, got {section!r}.")
    for name in section:
        if known is not None and name not in known:
            raise PlanError(f"sweep: {where}: unknown key `{name}`; it may have {', '.join(known)}."
                            + did_you_mean(name, known))
