"""The planner weighs all 27 strategies, chooses one that is built and fits, and says why not the others."""

from __future__ import annotations

import time

import pytest

from shoestring.base.errors import ConfigError
from shoestring.cluster.planner import layout_for, plan_strategy, survival
from shoestring.cluster.strategies import BUILT, all_strategies, equal_groups, leftover
from shoestring.cluster.topology import Cluster, Device, Group, Node
from tests.cluster.clusters import JOB, hosts

LAYOUT = equal_groups(4, 2)
CLUSTER = hosts(2, 2)


def test_every_row_has_its_reason_and_only_the_chosen_none() -> None:
    plan = plan_strategy(JOB, CLUSTER, LAYOUT)
    assert len({row.name for row in plan.rows}) == 27
    assert [row.name for row in plan.rows if not row.rejected] == [plan.strategy]
    assert plan.strategy in BUILT and plan.chosen.fits
    assert plan.accumulation == 4 and "a step predicted" in plan.reason
    for row in plan.rows:
        assert row.step_s == pytest.approx(row.compute_s + row.exposed_s)
        assert row.built == (row.name in BUILT)
        if not row.built:
            assert row.dominated, f"{row.name} is not built, so somebody should beat it"
    by_name = {row.name: row for row in plan.rows}
    assert (by_name["III"].survives, by_name["NNG"].survives, by_name["GGG"].survives) == (
        "whole",
        "masters",
        "lost",
    )
    assert by_name["GGG"].rings == {"gather": "overlap", "scatter": "overlap"}


def test_less_memory_means_finer_shards() -> None:
    plans = [
        plan_strategy(JOB, CLUSTER, LAYOUT, row.memory_bytes)
        for row in plan_strategy(JOB, CLUSTER, LAYOUT).rows
        if row.name in ("NNN", "IIG", "GGG")
    ]
    times = [plan.chosen.step_s for plan in plans]
    assert times == sorted(times)
    assert plans[-1].strategy == "GGG"
    assert all(plan.chosen.memory_bytes <= plan.memory_limit_bytes for plan in plans)


def test_of_equally_fast_ones_that_survives_is_taken() -> None:
    # Compute is all there is: every strategy takes the same time.
    slow = JOB.model_copy(update={"compute_s": 1000.0})
    plan = plan_strategy(slow, CLUSTER, LAYOUT)
    assert plan.chosen.survives == "whole"
    whole = [row.memory_bytes for row in plan.rows if row.choosable and row.survives == "whole"]
    assert plan.chosen.memory_bytes == min(whole)
    assert "survives a lost rank" in plan.reason


def test_nothing_fits_names_the_smallest() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_strategy(JOB, CLUSTER, LAYOUT, 1000)
    least = min(
        (row for row in plan_strategy(JOB, CLUSTER, LAYOUT).rows if row.choosable),
        key=lambda row: row.memory_bytes,
    )
    assert f"the smallest, {least.name}, needs {least.memory_bytes}" in caught.value.what


def test_a_wish_is_followed_or_refused_with_what_would_do() -> None:
    plan = plan_strategy(JOB, CLUSTER, LAYOUT, wanted="ggg")
    assert plan.strategy == "GGG" and "asked for" in plan.reason
    tight = plan.chosen.memory_bytes
    with pytest.raises(ConfigError) as caught:
        plan_strategy(JOB, CLUSTER, LAYOUT, tight, wanted="NNN")
    assert f"GGG, needs {tight}" in caught.value.what and "GGG" in caught.value.todo
    with pytest.raises(ConfigError, match="GGI is not built"):
        plan_strategy(JOB, CLUSTER, LAYOUT, wanted="GGI")
    with pytest.raises(ConfigError, match="no strategy"):
        plan_strategy(JOB, CLUSTER, LAYOUT, wanted="fast")


@pytest.mark.parametrize(
    ("count", "workers", "twins"),
    [
        (1, 4, {"III": "GGG", "NII": "NGG", "IIG": "GGG", "GNG": "ING", "NNI": "NNG"}),
        (4, 1, {"III": "NNN", "IIG": "NNG", "IGG": "NGG", "NIG": "NNG"}),
        (1, 1, {"GGG": "NNN", "IIG": "NNN", "NNG": "NNN"}),
    ],
)
def test_other_names_of_one_strategy_are_told(count: int, workers: int, twins: dict[str, str]) -> None:
    cluster = hosts(count, workers)
    plan = plan_strategy(JOB, cluster, layout_for(cluster)[0])
    by_name = {row.name: row for row in plan.rows}
    assert {name: by_name[name].same_as for name in twins} == twins
    assert not plan.chosen.same_as
    assert all(by_name[row.same_as].step_s == pytest.approx(row.step_s) for row in plan.rows if row.same_as)
    # Whoever asks for one of them by its other name gets it.
    first = next(iter(twins))
    assert plan_strategy(JOB, cluster, layout_for(cluster)[0], wanted=first).strategy == first


def uneven() -> Cluster:
    """Hosts of 2 and of 1 workers."""
    one = Node(
        name="small",
        devices=(Device(kind="cpu", cores=1, memory_bytes=2**33, rates={"bf16": 3e11, "fp32": 1e11}),),
    )
    return hosts(1, 2).model_copy(update={"nodes": (*hosts(1, 2).nodes, one)})


def test_groups_that_do_not_divide_are_an_error_before_the_start() -> None:
    cluster = uneven()
    layout, reason = layout_for(cluster)
    assert (layout.count, layout.group_size) == (3, 1) and "2, 1" in reason
    assert plan_strategy(JOB, cluster, layout).chosen.choosable
    with pytest.raises(ConfigError, match="islands have 2, 1 workers"):
        plan_strategy(JOB, cluster, layout, wanted="IIG")
    with pytest.raises(ConfigError, match="groups of 2 do not divide 3"):
        layout_for(cluster, 2)
    assert layout_for(CLUSTER, 4)[0].group_size == 4


def test_islands_of_unequal_size_are_cut_to_their_common_one() -> None:
    cluster = hosts(3, 2)
    names = cluster.workers
    islands = (Group(name="a", workers=names[:4]), Group(name="b", workers=names[4:]))
    layout, reason = layout_for(cluster.model_copy(update={"groups": islands}))
    assert (layout.count, layout.group_size) == (3, 2) and "4, 2" in reason


def test_survival_of_a_rank_is_that_of_the_whole_layout() -> None:
    for count, workers in ((1, 1), (1, 4), (4, 1), (2, 2), (3, 2), (2, 3)):
        layout = equal_groups(count * workers, workers)
        for strategy in all_strategies():
            for lost in range(layout.size):
                alive = [rank for rank in range(layout.size) if rank != lost]
                left = leftover(strategy, layout, alive, alive)
                told = survival(strategy, layout)
                assert (left.complete, left.usable) == (told == "whole", told != "lost"), (strategy, layout)


def test_prices_count() -> None:
    plan = plan_strategy(JOB, hosts(2, 2, price_per_hour=3.6), LAYOUT)
    assert plan.chosen.price == pytest.approx(2 * 3.6 / 3600 * plan.chosen.step_s)
    assert plan_strategy(JOB, CLUSTER, LAYOUT).chosen.price == 0


def test_memory_of_a_device_is_shared_by_its_workers() -> None:
    assert plan_strategy(JOB, hosts(2, 2, memory_bytes=2**30), LAYOUT).memory_limit_bytes == 2**29


def test_slow_links_keep_traffic_inside_groups_and_equal_ones_do_not_care() -> None:
    """What the paper is about: at the memory of full sharding plus little, IIG or IGG, not GGG."""
    rows = {row.name: row for row in plan_strategy(JOB, CLUSTER, LAYOUT).rows}
    assert rows["IIG"].step_s < 0.5 * rows["GGG"].step_s
    assert rows["IIG"].memory_bytes < 0.75 * rows["III"].memory_bytes
    near = {row.name: row for row in plan_strategy(JOB, hosts(2, 2, ratio=1.0), LAYOUT).rows}
    assert near["GGG"].step_s / near["IIG"].step_s < rows["GGG"].step_s / rows["IIG"].step_s


def test_a_plan_takes_under_50_ms() -> None:
    long = JOB.model_copy(update={"layers": 80, "accumulation": 64})
    cluster, layout = hosts(16, 8), equal_groups(128, 8)
    taken = []
    for _ in range(3):
        begun = time.process_time()
        plan_strategy(long, cluster, layout)
        taken.append(time.process_time() - begun)
    assert min(taken) < 0.05
