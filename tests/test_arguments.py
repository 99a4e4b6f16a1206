"""Rules of arguments: what they take, and the one line in which they refuse the rest."""

import numpy as np
import pandas as pd
import pytest
import torch

from flowstudy.arguments import (
    FLAG,
    MOST_LAYERS,
    NAME,
    a_real,
    a_whole,
    check_frame,
    check_path,
    one_among,
    optional,
    several,
    takes,
)
from flowstudy.refusal import RefusalError, RefusalTypeError
from flowstudy.torch_arguments import check_torch_device

TAKEN = [
    (a_whole(), [0, 5, np.int32(3), 2**63 - 1]), (a_whole(2, 4), [2, 4]), (a_real(), [1, 1.5, np.float32(2), -1e300]),
    (a_real("a number"), [float("inf")]), (one_among(["relu"]), ["relu"]), (optional(a_whole(1)), [None, 1]),
    (several(a_whole()), [[1], (0, 2), range(3), np.arange(3), torch.arange(3), {4}]),
    (several(NAME, least=0), [[], {"a": 1}]), (FLAG, [True, False, np.True_]), (check_frame, [pd.DataFrame()]),
    (check_path, ["a", check_path.__code__.co_filename]), (check_torch_device, ["cpu", torch.device("cpu")]),
]
REFUSED = [
    (a_whole(), [-1, 1.0, True, "1", None, 2**63, np.timedelta64(3, "s")], "an integer of at least 0"),
    (a_whole(2, 4), [1, 5], "an integer from 2 to 4"),
    (a_whole(1, MOST_LAYERS), [10**9], "an integer of at least 1 and at most 10,000,000"),
    (a_real("positive and finite"), [0, -1.0, float("nan"), float("inf"), "1", True, 2**64], "positive and finite"),
    (one_among(["relu", "tanh"]), ["rleu"], r"one of relu, tanh, got 'rleu'\. Did you mean 'relu'\?"),
    (one_among(["relu", "tanh"]), [None, ["relu"], np.ones((2, 2))], "one of relu, tanh, got "),
    (several(a_whole()), [[], ""], ""), (several(a_whole()), [3, None, iter([1])], "a sequence, got "),
    (FLAG, [None, 1, "yes"], "True or False"), (check_path, ["", 0, None], "a path"),
    (check_torch_device, ["abacus", "", None, -1, 2**64, object()], "a device that torch sees"),
]


@pytest.mark.parametrize("rule, values", TAKEN)
def test_what_rules_take(rule, values):
    for value in values:
        rule("call", "x", value)


@pytest.mark.parametrize("rule, values, message", REFUSED)
def test_what_rules_refuse(rule, values, message):
    """By the call and the argument, in one line."""
    for value in values:
        with pytest.raises(RefusalError, match=rf"^call: `x.*` must (be|hold) .*{message}") as caught:
            rule("call", "x", value)
        assert "\n" not in str(caught.value)


def test_one_of_a_sequence_is_named():
    with pytest.raises(RefusalTypeError, match=r"^call: `x\[1\]` must be a name, got 3\."):
        several(NAME)("call", "x", ["a", 3])


def test_a_functions_rules_are_kept_before_it_is_called():
    """Whether an argument is given by place, by name or not at all; the signature stays, and Python's own errors."""
    @takes(n=a_whole(1), word=NAME)
    def repeated(n: int, word: str = "a") -> str:
        """Its docstring."""
        return n * word

    assert repeated(2) == repeated(n=2) == "aa" and repeated(2, word="b") == "bb"
    assert repeated.__doc__ == "Its docstring." and repeated.__name__ == "repeated"
    for arguments, options in (((0,), {}), ((), {"n": 0}), ((1, 2), {}), ((1,), {"word": 2})):
        with pytest.raises(RefusalError, match=r"repeated: `(n|word)` must be"):
            repeated(*arguments, **options)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'"):
        repeated()
