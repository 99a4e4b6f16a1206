"""Shards: parts of a plan that know nothing of each other, disjoint, and together the whole."""

import random

import pytest
from pandas.testing import assert_frame_equal

from flowstudy.sweep import grid, run
from flowstudy.sweep.cells import CELL_FIELDS
from flowstudy.sweep.plan import cost, shard_of

SMALL = {"width": 5, "train_samples": 20}
PLAN = grid(net=["plain", "highway"], depth=[2, 5, 10, 40], seed=range(30), epochs=[0, 3], **SMALL)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_shards_partition_the_plan(parts):
    """Each cell is in exactly one shard, in the plan's order, however the plan is ordered when a shard looks at it."""
    shards = [shard_of(PLAN, which, parts) for which in range(1, parts + 1)]
    assert sorted(PLAN.index(cell) for shard in shards for cell in shard) == list(range(len(PLAN)))
    for which, shard in enumerate(shards, 1):
        assert [PLAN.index(cell) for cell in shard] == sorted(PLAN.index(cell) for cell in shard)
        mixed = random.Random(0).sample(PLAN, len(PLAN))
        assert set(shard_of(mixed, which, parts)) == set(shard)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shards_cost_about_the_same(parts):
    """Within a fifth of the mean: pieces cost at most a shard's share, and the costliest are dealt out first."""
    costs = [sum(map(cost, shard_of(PLAN, which, parts))) for which in range(1, parts + 1)]
    assert max(costs) <= 1.2 * sum(costs) / parts


def test_pieces_of_many_cells_count_as_many():
    """Seven structures of cost 40, 30 (six cells of 5), 24 (one of 24), 24, 18, 12 and 6, the idlest first, by hand."""
    plan = grid(depth=[1, 2, 3, 4, 5], seed=range(6), **SMALL) + grid(depth=[24, 40], **SMALL)
    shards = [shard_of(plan, which, 2) for which in (1, 2)]
    assert [sum(map(cost, shard)) for shard in shards] == [40 + 24 + 12, 30 + 24 + 18 + 6]


def test_more_shards_than_cells(tmp_path):
    """Some get nothing, and return no rows; none fails its array job."""
    empty = [which for which in range(1, 6) if not shard_of(PLAN[:3], which, 5)]
    assert len(empty) == 2
    frame = run(PLAN[:3], store=tmp_path, shard=(empty[0], 5), device="cpu")
    assert frame.empty and list(frame.columns) == ["cell", *CELL_FIELDS]


@pytest.mark.parametrize("shard", ["1/2", (1, 2)])
def test_two_shards_are_the_whole(tmp_path, shard):
    """Each returns its own rows; after both, the plan is done, in the same frame as by one process, bit for bit."""
    plan = grid(net=["plain", "highway"], depth=[2, 3], seed=range(4), epochs=2, batch_size=10, **SMALL)
    options = {"device": "cpu", "progress": False}
    one = run(plan, store=tmp_path / "two", shard=shard, **options)
    assert 0 < one["cell"].nunique() < len(plan)
    two = run(plan, store=tmp_path / "two", shard="2/2", **options)
    assert set(one["cell"]) | set(two["cell"]) == {cell.key for cell in plan}
    assert set(one["cell"]) & set(two["cell"]) == set()
    files = sorted((tmp_path / "two").rglob("*.parquet"))
    both = run(plan, store=tmp_path / "two", **options)
    assert sorted((tmp_path / "two").rglob("*.parquet")) == files  # nothing was left to compute
    assert_frame_equal(both, run(plan, store=tmp_path / "one", **options), check_exact=True)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", (0, 0), (1.5, 2), (1, 2.0), (True, 2),
                                   (1, 2, 3), ("1", 2), 3])
@pytest.mark.usefixtures("annotations_unchecked")
def test_wrong_shards_are_refused(tmp_path, shard):
    with pytest.raises(ValueError, match=r"^run: `shard` must be 'i/N' with i from 1 to N, got"):
        run(PLAN, store=tmp_path / "none", shard=shard)
    assert not (tmp_path / "none").exists()
