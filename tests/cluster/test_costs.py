"""Bytes per rank and steps by the formulas, apart from the published ones and held against them."""

from __future__ import annotations

import pytest

from shoestring.base.errors import ConfigError
from shoestring.cluster.calibrate import Measured, calibrate
from shoestring.cluster.costs import CPU_OVERLAP, JobCost, OverlapModel, compute_s, held, step_cost
from shoestring.cluster.published import Setting, published_bytes, published_step_s
from shoestring.cluster.strategies import BUILT, equal_groups, parse_strategy
from shoestring.cluster.wires import wires_of
from tests.cluster.clusters import CARD_BYTES_PER_S, JOB, hosts

BARE = OverlapModel(start_s=0.0, busy_s_per_byte=0.0, update_s_per_parameter=0.0)
LAYOUT = equal_groups(4, 2)
CLUSTER = hosts(2, 2, latency_s=0.0)
WIRES = wires_of(CLUSTER, LAYOUT)
MANY = JOB.model_copy(update={"layers": 1000, "root_parameters": 0, "compute_s": 1e-12})
SETTING = Setting(4, 2, 4, 20 * CARD_BYTES_PER_S, CARD_BYTES_PER_S, 1e7, 1e7)


@pytest.mark.parametrize("name", BUILT)
def test_kept_bytes_are_the_published_ones(name: str) -> None:
    strategy = parse_strategy(name)
    memory = held(JOB, strategy, WIRES)
    kept = memory.parameters_bytes + memory.gradients_bytes + memory.states_bytes
    assert kept == pytest.approx(published_bytes(strategy, SETTING))


@pytest.mark.parametrize("name", ["NII", "III", "IIG"])
def test_what_stays_in_groups_and_between_peers_takes_the_published_time(name: str) -> None:
    strategy = parse_strategy(name)
    cost = step_cost(MANY, strategy, WIRES, CLUSTER, BARE)
    assert cost.communication_s == pytest.approx(published_step_s(strategy, SETTING), rel=2e-3)


@pytest.mark.parametrize("name", BUILT)
def test_over_the_world_the_rings_take_less_than_published_flat_ones(name: str) -> None:
    strategy = parse_strategy(name)
    cost = step_cost(MANY, strategy, WIRES, CLUSTER, BARE)
    assert cost.communication_s <= published_step_s(strategy, SETTING) * 1.0001
    assert cost.step_s == pytest.approx(cost.compute_s + cost.exposed_s)


def test_an_fp32_model_needs_no_masters_and_muon_one_moment() -> None:
    wide = JOB.model_copy(update={"parameter_bytes": 4, "gradient_bytes": 4, "moment_bytes": 4})
    memory = held(wide, parse_strategy("IIG"), WIRES)
    assert memory.states_bytes == 4 * JOB.parameters / 4
    assert memory.parameters_bytes == memory.gradients_bytes == 4 * JOB.parameters / 2
    plain = held(wide.model_copy(update={"moment_bytes": 0}), parse_strategy("NNN"), WIRES)
    assert plain.states_bytes == 0


def test_frozen_parameters_cost_parameters_only() -> None:
    tuned = JOB.model_copy(update={"trainable_parameters": 30_000})
    memory = held(tuned, parse_strategy("ING"), WIRES)
    assert memory.parameters_bytes == JOB.parameters
    assert (memory.gradients_bytes, memory.states_bytes) == (60_000, 90_000)
    few = step_cost(tuned, parse_strategy("NNN"), WIRES, CLUSTER, BARE)
    all_of_it = step_cost(JOB, parse_strategy("NNN"), WIRES, CLUSTER, BARE)
    assert few.card_bytes / all_of_it.card_bytes == pytest.approx(0.003)


def test_working_memory_is_there_only_where_something_is_sharded() -> None:
    assert held(JOB, parse_strategy("NNG"), WIRES).working_bytes == 0
    # Root of 2 M and layers of 1 M: whole parameters of root and two, whole gradients of root and three.
    assert held(JOB, parse_strategy("IIG"), WIRES).working_bytes == 2 * (4_000_000 + 5_000_000)
    assert held(JOB, parse_strategy("NIG"), WIRES).working_bytes == 2 * 5_000_000


def test_wire_bytes_of_a_step_by_hand() -> None:
    """IIG: 2 M of root and 8 layers of 1 M, bf16, in groups of 2 of 4."""
    cost = step_cost(JOB, parse_strategy("IIG"), WIRES, CLUSTER, BARE)
    gathered = 4 * (2e6 + 15 * 1e6) * 2 / 2
    scattered = 4 * 10e6 * 2 / 2
    between = 2 * (10e6 * 2 / 2) / 2  # reduce-scatter there and all-gather back, of the group's shard
    assert cost.worker_bytes == pytest.approx(gathered + scattered + between)
    assert cost.local_bytes == pytest.approx(2 * (gathered + scattered))
    assert cost.card_bytes == pytest.approx(2 * between)


def test_compute_comes_from_the_slowest_device_or_the_clock() -> None:
    assert compute_s(JOB, CLUSTER) == pytest.approx(6e7 * 128 / 3e11)
    slow = CLUSTER.nodes[1].devices[0].model_copy(update={"rates": {"bf16": 1e10}})
    uneven = CLUSTER.model_copy(
        update={"nodes": (CLUSTER.nodes[0], CLUSTER.nodes[1].model_copy(update={"devices": (slow,)}))}
    )
    assert compute_s(JOB, uneven) == pytest.approx(6e7 * 128 / 1e10)
    timed = JOB.model_copy(update={"compute_s": 0.5})
    assert step_cost(timed, parse_strategy("NNN"), WIRES, uneven, BARE).compute_s == pytest.approx(4 * 0.5)
    with pytest.raises(ConfigError, match="no rate of a cpu device for fp8"):
        compute_s(JOB.model_copy(update={"compute_dtype": "fp8"}), CLUSTER)


def test_communication_takes_cores_only_where_none_is_spare() -> None:
    busy = BARE.model_copy(update={"busy_s_per_byte": 1e-8})
    timed = JOB.model_copy(update={"compute_s": 1.0})
    strategy = parse_strategy("IIG")
    fast = hosts(2, 2, ratio=1000.0, latency_s=0.0)
    roomy = fast.nodes[0].devices[0].model_copy(update={"cores": 4})
    spare = fast.model_copy(
        update={"nodes": tuple(node.model_copy(update={"devices": (roomy,)}) for node in fast.nodes)}
    )
    wires = wires_of(fast, LAYOUT)
    tight = step_cost(timed, strategy, wires, fast, busy).step_s
    assert step_cost(timed, strategy, wires, spare, busy).step_s == pytest.approx(
        step_cost(timed, strategy, wires, fast, BARE).step_s
    )
    assert tight > 1.05 * step_cost(timed, strategy, wires, spare, busy).step_s


def test_more_micro_steps_are_counted_from_the_batch() -> None:
    assert (
        JobCost(
            parameters=1, flops_per_sample=1, activation_bytes_per_sample=1, micro_batch=2, batch=17
        ).micro_steps(4)
        == 3
    )


def test_calibration_finds_coefficients_that_made_the_steps() -> None:
    truth = CPU_OVERLAP.model_copy(update={"start_s": 2e-3, "busy_s_per_byte": 4e-9, "wire_share": 0.8})
    jobs = [JOB.model_copy(update={"accumulation": s, "compute_s": c}) for s in (1, 4) for c in (0.02, 0.2)]
    measured = [
        Measured(job, strategy, LAYOUT, cluster, step_cost(job, strategy, WIRES, cluster, truth).step_s)
        for job in jobs
        for strategy in map(parse_strategy, ("NNG", "GGG", "IIG"))
        for cluster in (CLUSTER,)
    ]
    fitted = calibrate(measured, CPU_OVERLAP)
    assert fitted.error < 0.03 < fitted.error_before
    with pytest.raises(ConfigError, match="no measured steps"):
        calibrate([], CPU_OVERLAP)
