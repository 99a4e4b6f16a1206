"""Nets whose training is known: the kept rows are whole, areas and intervals are what they say, rivals' laws."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from flowstudy import theory
from flowstudy.outcomes import judged, known_outcomes, rates, rivals, small_nets, train_at_rates
from flowstudy.refusal import RefusalError
from flowstudy.trainability import trainability
from flowstudy.trainability.trials.rates import USUAL_RATES


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return known_outcomes.known_outcomes(small_nets.FAMILIES)


@pytest.fixture(scope="module")
def scores(rows) -> pd.DataFrame:
    return judged.scored(rows)


# --- the kept rows ---------------------------------------------------------------------------------------------------


def test_every_net_has_its_row(rows):
    """102 nets of 34 architectures, and the map's 21."""
    plan = [(a.name, start) for a in small_nets.small_nets() for start in a.starts]
    assert sorted(zip(rows["architecture"], rows["start"], strict=True)) == sorted(plan) and len(plan) == 102
    nets = known_outcomes.known_outcomes([small_nets.MAP])
    assert len(nets) == len(small_nets.MAP_DEPTHS) * len(small_nets.MAP_BIASES)
    assert {(row.dataset, row.steps, row.seed) for row in pd.concat([rows, nets]).itertuples()} == {("digits", 300, 0)}


def test_no_net_lacks_a_statistic_without_a_reason(rows, scores):
    """Depth scales exist for plain nets whose signal has a length to go to: not for ReLU nets of a variance above 2."""
    missing = scores[scores["score"].isna()]
    assert set(missing["statistic"]) <= {"depth over 6 ξ_c"}
    plain = rows["family"] == "plain"
    grows = (rows["activation"] == "relu") & (rows["start"] > 1)
    assert (rows["depth_scales"].isna() == (~plain | grows)).all()
    assert set(scores["statistic"]) == set(judged.STATISTICS)


def test_what_is_kept_is_of_the_digits():
    with pytest.raises(RefusalError, match="`train` must be True for mnist, 300 steps and 1 seeds, got False"):
        known_outcomes.known_outcomes(dataset="mnist")
    with pytest.raises(RefusalError, match=r"`families` must be one of plain, .* Did you mean 'plain'"):
        known_outcomes.known_outcomes(["plane"])


def test_the_best_accuracy_is_that_of_one_of_the_rates(rows):
    for optimizer in known_outcomes.OPTIMIZERS:
        best = [max((float(word) for word in words.split() if word != "nan"), default=0.0)
                for words in rows[f"accuracies_{optimizer}"]]
        np.testing.assert_allclose(rows[f"accuracy_{optimizer}"], best, atol=5e-4)   # three digits are kept
        assert all(len(words.split()) == len(USUAL_RATES[optimizer]) for words in rows[f"accuracies_{optimizer}"])


def test_what_was_read_at_the_start_is_read_again(rows):
    """One net of the kept rows drawn anew: the same weights, the same kernel."""
    kept = rows[(rows["architecture"] == "residual relu 10") & (rows["start"] == 0.3)].iloc[0]
    architecture = next(a for a in small_nets.small_nets() if a.name == "residual relu 10")
    x, y = known_outcomes.images("digits", "cpu")
    found = trainability(architecture.net(8, 10, 0.3, 0), x, y, optimizer="adam")
    assert found.remaining[10_000] == pytest.approx(kept["remaining_10000_adam"], rel=1e-3)
    assert found.loss == pytest.approx(kept["loss"], rel=1e-4)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer, make", [
    ("momentum", lambda weights, rate: torch.optim.SGD(weights, rate, momentum=0.9)),
    ("adam", torch.optim.Adam)])
@pytest.mark.parametrize("family", small_nets.FAMILIES)
def test_nets_side_by_side_train_as_each_alone(family, optimizer, make):
    """Against torch.optim and a plain loop, from the same weights on the same batches, in float64."""
    a = min((a for a in small_nets.small_nets() if a.family == family), key=lambda a: a.depth)
    x = torch.randn(70, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    y, nets, grid = torch.arange(70) % 10, [a.net(8, 10, s, 0).double() for s in a.starts[:2]], (0.003, 0.01)
    course = train_at_rates.train_at_rates(nets, x, y, optimizer=optimizer, rates=grid, steps=3)
    generator = torch.Generator().manual_seed(0)
    looked_at = torch.randperm(70, generator=generator)[:64].view(2, 32)
    order = torch.cat([torch.randperm(70, generator=generator) for _ in range(2)])
    for i, start in enumerate(a.starts[:2]):
        for j, rate in enumerate(grid):
            net = a.net(8, 10, start, 0).double()
            learner = make(list(net.parameters()), rate)
            for index in order[:96].view(3, 32):
                learner.zero_grad()
                nn.functional.cross_entropy(net(x[index]), y[index]).backward()
                learner.step()
            with torch.no_grad():
                loss = np.mean([nn.functional.cross_entropy(net(x[index]), y[index]).item() for index in looked_at])
            assert course.loss[3][i, j].item() == pytest.approx(loss, rel=1e-8)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """What is kept is not trained again, and the rows are those of an uninterrupted run but for the seconds."""
    few = [a for a in small_nets.small_nets() if a.name in ("plain relu 3", "plain tanh 3")]
    monkeypatch.setattr(known_outcomes, "chosen_nets", lambda families: few[:1])
    options = dict(train=True, steps=101, store=tmp_path)
    first = known_outcomes.known_outcomes(["plain"], **options)
    monkeypatch.setattr(known_outcomes, "chosen_nets", lambda families: few)
    both = known_outcomes.known_outcomes(["plain"], **options)
    pd.testing.assert_frame_equal(both[:3], first, rtol=1e-5)
    assert both["architecture"].tolist() == ["plain relu 3"] * 3 + ["plain tanh 3"] * 3
    assert sorted(both.columns) == sorted(known_outcomes.known_outcomes(["plain"]).columns)


# --- areas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained, failed, area", [
    ([1, 2], [3, 4], 1.0), ([3, 4], [1, 2], 0.0), ([1, 1], [1, 1], 0.5), ([1, 3], [2, 4], 0.75),
    ([-math.inf, 0], [0, math.inf], 0.875)])
def test_areas_worked_by_hand(trained, failed, area):
    assert judged.wins(np.array(trained, float), np.array(failed, float)).mean() == area


def test_areas_are_scikit_learns_and_lie_in_their_intervals(scores):
    found = judged.areas(scores).set_index(["optimizer", "statistic", "family"])
    for (optimizer, statistic), nets in scores.dropna(subset="score").groupby(["optimizer", "statistic"]):
        area = found.loc[optimizer, statistic, "all"]
        assert area["auc"] == pytest.approx(roc_auc_score(nets["trained"], -nets["score"].clip(-1e300, 1e300)))
    known = found.dropna(subset="auc")
    assert ((known["low"] <= known["auc"]) & (known["auc"] <= known["high"])).all()
    assert found["auc"].isna().eq((found["trained"] == 0) | (found["trained"] == found["nets"])).all()


def test_intervals_are_those_of_drawing_architectures_one_by_one(scores):
    """Against a loop that draws, joins and asks scikit-learn; both are random, with 400 resamples of the same law."""
    nets = scores[(scores["optimizer"] == "adam") & (scores["statistic"] == "condition number")]
    nets = nets.assign(score=nets["score"].clip(upper=1e300))
    groups = [group for _, group in nets.groupby("architecture")]
    rng, found = np.random.default_rng(1), []
    for _ in range(400):
        drawn = pd.concat([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        found.append(roc_auc_score(drawn["trained"], -drawn["score"]))
    _, low, high = judged.area_and_interval(nets, 400)
    spread = np.std(found)   # a 2.5 % quantile of 400 has a standard error of about 0.13 times that of the law
    assert [low, high] == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.8 * spread)


def test_thresholds_separate_what_can_be_separated():
    apart = pd.DataFrame({"score": [1.0, 2.0, 5.0, 9.0, math.inf], "trained": [True, True, False, False, False]})
    assert judged.best_threshold(apart) == 3.5 and judged.right_by(apart, 3.5) == 1
    assert judged.best_threshold(apart.assign(trained=True)) == math.inf
    assert judged.best_threshold(apart.assign(trained=False)) == -math.inf


def test_verdicts_count_every_net(rows):
    """Right, wrong one way and wrong the other way, against a loop over the nets."""
    found = judged.verdicts(rows).set_index(["optimizer", "reading", "family"]).loc[("adam", "trial", "all")]
    trained, told = rows["accuracy_adam"] > judged.TRAINED, judged.said(rows, "adam", "trial")
    right = [(word == "trains") == bool(did) for word, did in zip(told, trained, strict=True)]
    assert found["nets"] == len(rows) and found["right"] == pytest.approx(np.mean(right))
    assert found["trained"] == trained.sum()


def test_the_docstring_quotes_these_error_rates(rows):
    found = judged.verdicts(rows).set_index(["reading", "optimizer", "family"])["right"]
    said = " ".join(trainability.__doc__.split())
    for reading in ("trial", "kernel"):
        quoted = " and ".join(f"{100 * found[reading, optimizer, 'all']:.0f} %" for optimizer in ("momentum", "adam"))
        assert quoted in said, (reading, quoted)


def test_the_page_quotes_these_areas(scores):
    """Every statistic has its row there, both optimizers with their intervals."""
    page = (Path(__file__).parents[1] / "docs" / "explanation" / "held_against_training.md").read_text()
    found = judged.areas(scores).set_index(["statistic", "optimizer", "family"])
    for statistic in judged.STATISTICS:
        cells = [found.loc[statistic, optimizer, "all"] for optimizer in known_outcomes.OPTIMIZERS]
        numbers = " | ".join(f"{cell.auc:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in cells)
        assert f"| {statistic} | {numbers} |" in page.replace(r"$\xi_c$", "ξ_c")


# --- the rates, and the edge -----------------------------------------------------------------------------------------


def test_windows_are_the_rates_that_train():
    row = {"architecture": "a", "family": "plain", "activation": "relu", "depth": 3, "start": 1.0, "seed": 0,
           "stable_rate": 0.5, "dataset": "digits", "steps": 300,
           "accuracies_momentum": "0.1 0.8 0.9 0.7 0.95 0.1 nan nan", "accuracies_adam": "0.1 " * 8}
    momentum, adam = rates.windows(pd.DataFrame([row])).to_dict("records")
    assert (momentum["lowest"], momentum["highest"], momentum["rates"]) == (3e-3, 0.1, 3)
    assert math.isnan(adam["lowest"]) and adam["rates"] == 0


def test_an_edge_lies_on_the_line_between_two_places():
    assert rates.crossing(pd.Series([-3, -2, -1]), pd.Series([-1.0, -0.25, 0.75])) == -1.75
    assert math.isnan(rates.crossing(pd.Series([-3, -2]), pd.Series([1.0, 2.0])))


def test_the_rule_of_the_edge_is_the_theorys():
    edges = rates.highway_edge(known_outcomes.known_outcomes([small_nets.MAP])).set_index("depth")
    assert edges["rule"].to_dict() == {depth: theory.suggest_gate_bias(depth - 1) for depth in small_nets.MAP_DEPTHS}


# --- what others read ------------------------------------------------------------------------------------------------


def test_synflow_of_a_linear_net_is_a_product_of_matrices():
    """Each of L layers has the same sum, that of all paths: R = 1^T |W_L| ... |W_1| 1, so that the score is ln L R."""
    net = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False), nn.Linear(4, 2, bias=False))
    product = (net[2].weight.abs() @ net[1].weight.abs() @ net[0].weight.abs()).detach()
    assert rivals.synflow(net, (3,)) == pytest.approx(math.log(3 * float(product.sum())), rel=1e-6)
    normed = nn.Sequential(net[0], nn.LayerNorm(5), net[1], small_nets.BatchStatistics(), net[2])
    assert rivals.synflow(normed, (3,)) == rivals.synflow(net, (3,))
    nn.init.zeros_(net[1].weight)
    assert rivals.synflow(net, (3,)) == -math.inf


class Quadratic(nn.Module):
    """Outputs whose sum has the derivative A x: a sample's row of derivatives is what one chooses."""

    def __init__(self, matrix: torch.Tensor):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x * (x @ self.matrix)).sum(1, keepdim=True)


def test_jacob_cov_in_closed_form():
    """m uncorrelated rows: all eigenvalues are 1; m equal ones: one is m, the others 0; a row of zeros has none."""
    k, m = rivals.JITTER, 4
    net = Quadratic(torch.eye(8))
    hadamard = torch.tensor([[1.0, 1], [1, -1]])
    rows = torch.kron(torch.kron(hadamard, hadamard), hadamard)[1:1 + m]   # orthogonal, each of mean 0
    assert rivals.jacobian_covariance(net, rows) == pytest.approx(-m * (math.log(1 + k) + 1 / (1 + k)))
    alike = -(math.log(m + k) + 1 / (m + k)) - (m - 1) * (math.log(k) + 1 / k)
    assert rivals.jacobian_covariance(net, rows[:1].repeat(m, 1)) == pytest.approx(alike, rel=1e-8)
    assert rivals.jacobian_covariance(net, torch.zeros(m, 8)) == -math.inf


def test_the_mean_cosine_is_that_of_all_pairs():
    net = small_nets.small_nets()[0].net(8, 10, 1.0, 0)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    net[1].readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().double()))
    net(x)
    pairs = [nn.functional.cosine_similarity(seen[0][i], seen[0][j], dim=0).item() for i in range(5) for j in range(i)]
    assert rivals.last_layer_cosine(net, x) == pytest.approx(np.mean(pairs), rel=1e-5)
