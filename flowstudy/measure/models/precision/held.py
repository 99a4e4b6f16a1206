"""The objects that a model holds in its attributes besides modules, parameters and buffers."""

import functools
import types
import weakref
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

ATOMS = (type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, complex, bool, type(None), Tensor)


def everything_in(value: object, known: Mapping[int, object]) -> list[object]:
    """The value and all objects reachable from it, holders before the objects they hold; `known` ids are left out."""
    found: dict[int, object] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) not in known and id(one) not in found:
            found[id(one)] = one
            waiting += held_by(one)
    return list(found.values())


def held_by(value: object) -> Iterator[object]:
    """The objects that the value holds directly; of a function, its closure variables and default arguments."""
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
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, functools._lru_cache_wrapper):
        yield value.__wrapped__
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield getattr(value, name)
    for name in ("func", "args", "keywords") if type(value).__name__ == "partial" else ():
        yield getattr(value, name)


def is_filled(cell: types.CellType) -> bool:
    """Whether a closure variable has a value yet: a function may be defined before the variables it names."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def rebound(value: types.FunctionType | functools._lru_cache_wrapper | weakref.ref,
            copies: Mapping[int, object]) -> object:
    """The function or weak reference with the objects it refers to replaced by their copies; itself if it has none.

    `copy.deepcopy` does not copy functions and weak references, so those of a copied model would still use the
    original's weights.  The objects that a function refers to are its closure variables and its default arguments.  A
    copied lru_cache starts empty.
    """
    if isinstance(value, weakref.ref):
        twin = copies.get(id(value()))
        return value if twin is None else weakref.ref(twin)
    if isinstance(value, functools._lru_cache_wrapper):
        twin = of_copies(value.__wrapped__, copies)
        return value if twin is value.__wrapped__ else functools.lru_cache(**value.cache_parameters())(twin)
    return of_copies(value, copies)


def of_copies(function: object, copies: Mapping[int, object]) -> object:
    """The function or method with the objects it refers to replaced by their copies, where there are copies."""
    if isinstance(function, types.MethodType):
        return types.MethodType(function.__func__, copies.get(id(function.__self__), function.__self__))
    if not isinstance(function, types.FunctionType):
        return function
    closure = function.__closure__ or ()
    held = [*(cell.cell_contents for cell in closure if is_filled(cell)), *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).values()]
    if not any(id(one) in copies for one in held):
        return function

    def twin_of(one: object) -> object:
        return copies.get(id(one), one)

    cells = tuple(types.CellType(twin_of(cell.cell_contents)) if is_filled(cell) and id(cell.cell_contents) in copies
                  else cell for cell in closure)
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__,
                              function.__defaults__ and tuple(map(twin_of, function.__defaults__)), cells)
    twin.__kwdefaults__ = function.__kwdefaults__ and {k: twin_of(one) for k, one in function.__kwdefaults__.items()}
    twin.__dict__ = dict(vars(function))
    return twin


def can_be_copied(value: object) -> bool:
    """Whether the object itself can be copied, regardless of the objects that it holds."""
    if isinstance(value, (*ATOMS, nn.Module, dict, list, tuple, set, frozenset, types.FunctionType, types.MethodType)):
        return not isinstance(value, types.ModuleType)
    try:
        value.__reduce_ex__(4)
    except Exception:   # locks, files, generators and queues each raise an error of their own
        return False
    return True
