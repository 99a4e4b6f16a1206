"""What editors complete is what the library knows: each list of names beside the table that it stands for."""

from typing import get_args

import pytest

from flowstudy import names
from flowstudy.data.datasets import DATASETS
from flowstudy.kinds import KINDS
from flowstudy.measure.gradients.losses import LOSSES, OWN
from flowstudy.nets import ACTIVATIONS, SCHEMES
from flowstudy.sweep.looks.table import MEASUREMENTS
from flowstudy.trainability.will_it_train import OPTIMIZERS


@pytest.mark.parametrize("completed, known", [
    (names.NetName, KINDS), (names.ActivationName, ACTIVATIONS), (names.SchemeName, SCHEMES),
    (names.DatasetName, DATASETS), (names.MeasureName, MEASUREMENTS), (names.LossName, (*LOSSES, OWN)),
    (names.OptimizerName, OPTIMIZERS),
], ids=["net", "activation", "scheme", "dataset", "measure", "loss", "optimizer"])
def test_names_are_the_tables(completed, known):
    literals, any_other = get_args(completed)
    assert get_args(literals) == tuple(known) and any_other is str
