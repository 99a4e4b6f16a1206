"""What a model holds besides modules, parameters and buffers, in attributes of any kind."""

import types
import weakref
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

ATOMS = (type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, complex, bool, type(None), Tensor)


def everything_in(value: object, known: Mapping[int, object]) -> list[object]:
    """The value and all that it holds, what it holds first named last; what is `known` by its id is left out."""
    found: dict[int, object] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) not in known and id(one) not in found:
            found[id(one)] = one
            waiting += held_by(one)
    return list(found.values())


def held_by(value: object) -> Iterator[object]:
    """What the value itself holds; of a function, what it has from around it."""
    if isinstance(value, ATOMS):
        return
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, tuple | list | set | frozenset):
        yield from value
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if is_filled(cell))
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield getattr(value, name)
    for name in ("func", "args", "keywords") if type(value).__name__ == "partial" else ():
        yield getattr(value, name)


def is_filled(cell: types.CellType) -> bool:
    """A function may stand before what it names."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def rebound(value: types.FunctionType | weakref.ref, copies: Mapping[int, object]) -> object:
    """The same function of the copies of what it has from around it, or a reference to the copy; itself where of none.

    `copy.deepcopy` leaves both as they are: the copy's would use the model's own weights.
    """
    if isinstance(value, weakref.ref):
        twin = copies.get(id(value()))
        return value if twin is None else weakref.ref(twin)
    held = value.__closure__ or ()
    if not any(is_filled(cell) and id(cell.cell_contents) in copies for cell in held):
        return value
    cells = tuple(types.CellType(copies[id(cell.cell_contents)])
                  if is_filled(cell) and id(cell.cell_contents) in copies else cell for cell in held)
    twin = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    twin.__kwdefaults__, twin.__dict__ = value.__kwdefaults__, dict(vars(value))
    return twin


def can_be_copied(value: object) -> bool:
    """By itself, whatever may be said of what it holds."""
    if isinstance(value, (*ATOMS, nn.Module, dict, list, tuple, set, frozenset, types.FunctionType, types.MethodType)):
        return not isinstance(value, types.ModuleType)
    try:
        value.__reduce_ex__(4)
    except Exception:   # a lock, a file, a generator, a queue: each has its own
        return False
    return True
