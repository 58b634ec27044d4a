"""Settings and machines become a plan: whole where that serves, sharded where it must, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.base.errors import ConfigError
from shoestring.cluster.planner import plan_strategy
from shoestring.cluster.strategies import equal_groups
from shoestring.cluster.topology import Cluster, Device, Group, Link, Node, save_cluster
from shoestring.fleet.config import FleetConfig, MemberConfig
from shoestring.train.config import ParallelConfig, ShardingConfig, TrainConfig
from shoestring.train.planning import Costs, listed_cluster, plan_here, plan_listed, rates_in
from shoestring.train.runs import JobConfig, sharding_of
from tests.cluster.clusters import JOB, hosts

WHOLE = JOB.model_copy(update={"accumulation": 0, "parameter_bytes": 4, "gradient_bytes": 4})
COSTS = Costs(WHOLE, JOB.model_copy(update={"accumulation": 0}))


def machine(memory_bytes: int = 16 * 2**30) -> Cluster:
    """Four cores, loopback links."""
    link = Link(bytes_per_s=1e9, latency_s=1e-4)
    device = Device(
        kind="cpu", cores=4, memory_bytes=memory_bytes, flops_per_s={"1": 1e9, "2": 1.8e9, "4": 3e9}
    )
    return Cluster(nodes=(Node(name="here", devices=(device,)),), inside=link, between=link)


def written(
    path: Path, workers: int, hosts_count: int = 1, cores: int = 1, kind: str = "cpu", groups: int = 2
) -> str:
    """A cluster file."""
    device = Device(kind=kind, cores=cores, memory_bytes=2**33, workers=workers, rates={"fp32": 1e10})
    nodes = tuple(Node(name=f"host{i}", devices=(device,)) for i in range(hosts_count))
    link = Link(bytes_per_s=1e9, latency_s=1e-4)
    names = [worker for node in nodes for worker in node.workers]
    size = len(names) // groups
    islands = tuple(
        Group(name=f"g{i}", workers=tuple(names[i * size : (i + 1) * size])) for i in range(groups)
    )
    save_cluster(Cluster(nodes=nodes, inside=link, between=link, groups=islands), path)
    return str(path)


def config(path: str, workers: int = 0, transport: str = "auto") -> JobConfig:
    """Settings with a cluster file."""
    fleet = FleetConfig(members=MemberConfig(workers=workers), transport=transport)  # type: ignore[arg-type]
    return JobConfig(job="any", parallel=ParallelConfig(cluster=path), fleet=fleet)


def test_one_machine_with_room_keeps_everything_whole() -> None:
    plan = plan_here(COSTS, machine(), ParallelConfig(), 0)
    assert plan.workers == 4 and plan.sharding is not None
    assert plan.sharding.strategy == "NNN" and plan.dtype == "as_is"
    told = sharding_of(plan)
    assert told.strategy == "NNN" and told.groups == {f"w{i}": "g0" for i in range(4)}
    whole = next(row for row in plan.sharding.rows if row.name == "NNN")
    assert whole.parameters_bytes == 4 * JOB.parameters  # in the model's own dtype
    assert all(row.rejected for row in plan.sharding.rows if row.name != "NNN")


def gpus(count: int, memory_bytes: int = 16 * 2**30) -> Cluster:
    """A machine with some of them."""
    link = Link(bytes_per_s=1e9, latency_s=1e-4)
    device = Device(kind="cuda", cores=1, memory_bytes=memory_bytes, flops_per_s={"1": 1e9})
    return Cluster(nodes=(Node(name="here", devices=(device,) * count),), inside=link, between=link)


def test_workers_may_share_a_gpu_and_then_its_memory_and_rate() -> None:
    alone, both = (plan_here(COSTS, gpus(1), ParallelConfig(), workers) for workers in (0, 2))
    assert (alone.workers, both.workers) == (1, 2)
    one, two = (next(way for way in plan.alternatives if not way.rejected) for plan in (alone, both))
    assert two.memory_bytes == 2 * one.memory_bytes and two.compute_s == pytest.approx(one.compute_s)
    assert sharding_of(both).groups == {"w0": "g0", "w1": "g0"}
    assert plan_here(COSTS, gpus(4), ParallelConfig(), 0).workers == 4
    assert sharding_of(plan_here(COSTS, gpus(4), ParallelConfig(), 2)).groups == {"w0": "g0", "w1": "g0"}
    with pytest.raises(ConfigError, match="a GPU for each"):
        plan_here(COSTS, gpus(1), ParallelConfig(strategy="GGG"), 2)
    with pytest.raises(ConfigError, match="a GPU for each"):
        plan_here(COSTS, gpus(1, one.memory_bytes * 3 // 2), ParallelConfig(), 2)


def test_a_machine_without_room_shares_the_state() -> None:
    whole_bytes = 16 * JOB.parameters
    limit_bytes = whole_bytes * 3 // 4
    plan = plan_here(COSTS, machine(), ParallelConfig(memory_limit_bytes=limit_bytes), 0)
    assert plan.workers == 4 and "whole state fits no way" in plan.reason
    assert plan.sharding is not None and plan.sharding.strategy != "NNN" and plan.dtype == "bf16"
    chosen = next(way for way in plan.alternatives if not way.rejected)
    assert chosen.step_s == plan.sharding.chosen.step_s
    with pytest.raises(ConfigError, match="no way fits"):
        plan_here(COSTS, machine(), ParallelConfig(strategy="NNN", memory_limit_bytes=limit_bytes), 0)
    with pytest.raises(ConfigError, match="the smallest, "):
        plan_here(COSTS, machine(), ParallelConfig(memory_limit_bytes=1000), 0)


def test_a_wish_and_its_dtype_are_followed() -> None:
    plan = plan_here(COSTS, machine(), ParallelConfig(strategy="iig", group_size=2), 4)
    assert plan.sharding is not None and plan.sharding.strategy == "IIG"
    assert sharding_of(plan) == ShardingConfig(
        strategy="IIG", dtype="bf16", groups={"w0": "g0", "w1": "g0", "w2": "g1", "w3": "g1"}
    )
    same = plan_here(COSTS, machine(), ParallelConfig(strategy="GGI"), 4)
    assert same.sharding is not None and same.sharding.strategy == "GGG"
    assert "GGG is the same here" in same.sharding.reason
    own = plan_here(COSTS, machine(), ParallelConfig(strategy="IIG", dtype="as_is"), 4)
    assert own.dtype == "as_is"
    with pytest.raises(ConfigError, match="groups of 3 do not divide 4 ranks"):
        plan_here(COSTS, machine(), ParallelConfig(group_size=3), 4)


def test_a_batch_is_shared_before_micro_batches_are_cut() -> None:
    job = WHOLE.model_copy(update={"batch": 16, "micro_batch": 8})
    shared = Costs(job, job).over(4)
    assert (shared.whole.micro_batch, shared.whole.micro_steps(4)) == (4, 1)
    assert (Costs(job, job).over(1).whole.micro_batch, Costs(job, job).over(1).whole.micro_steps(1)) == (8, 2)


def test_measured_links_decide() -> None:
    plan = plan_listed(COSTS, hosts(2, 2), ParallelConfig())
    made = plan_strategy(COSTS.over(4).sharded, hosts(2, 2), equal_groups(4, 2), whole=COSTS.over(4).whole)
    assert plan.sharding is not None and plan.sharding.strategy == made.strategy
    assert (plan.workers, plan.threads) == (4, 1)
    assert "4 workers on 2 hosts" in plan.reason and len(plan.alternatives) == 1


def test_measured_links_of_one_machine_are_no_reason_to_shard() -> None:
    plan = plan_listed(COSTS, hosts(1, 4), ParallelConfig())
    assert plan.sharding is not None and plan.sharding.strategy == "NNN" and plan.dtype == "as_is"


def test_a_shared_update_costs_only_who_keeps_states_whole() -> None:
    job = COSTS.sharded
    muon = job.model_copy(update={"update_bytes": 2.0, "moment_bytes": 4.0})
    plain, more = (plan_strategy(one, hosts(2, 2), equal_groups(4, 2)).rows for one in (job, muon))
    for before, after in zip(plain, more, strict=True):
        assert (after.card_bytes > before.card_bytes) == before.name.endswith("N")
        assert after.states_bytes < before.states_bytes


def test_a_file_that_does_not_match_is_refused(tmp_path: Path) -> None:
    good = written(tmp_path / "good.toml", 2)
    assert listed_cluster(JobConfig(job="any")) is None
    assert listed_cluster(config(good)) == listed_cluster(config(good, workers=2))
    with pytest.raises(ConfigError, match=r"names 2 workers, fleet\.members\.workers is 3") as caught:
        listed_cluster(config(good, workers=3))
    assert "fleet.members.workers=0" in caught.value.todo
    two = written(tmp_path / "two.toml", 1, hosts_count=2)
    with pytest.raises(ConfigError, match="names 2 hosts") as caught:
        listed_cluster(config(two))
    assert "fleet.transport=ray" in caught.value.todo
    assert listed_cluster(config(two, transport="ray")) is not None
    with pytest.raises(ConfigError, match="a cpu of 4096 cores, here is"):
        listed_cluster(config(written(tmp_path / "big.toml", 2, cores=4096)))
    with pytest.raises(ConfigError, match="does not match the machine"):
        listed_cluster(config(written(tmp_path / "odd.toml", 2, kind="cuda", cores=1)))
    with pytest.raises(ConfigError, match="cannot read"):
        listed_cluster(config(str(tmp_path / "none.toml")))


def test_rates_come_from_the_file_where_it_has_them(tmp_path: Path) -> None:
    cluster = hosts(2, 2)
    assert rates_in(cluster, ("bf16", "fp32")) == {"1": {"bf16": 3e11, "fp32": 1e11}}
    assert rates_in(cluster, ("fp8",)) == {}


def test_sharding_is_not_set_by_hand() -> None:
    with pytest.raises(ConfigError, match="the plan fills in"):
        JobConfig(job="any", train=TrainConfig(sharding=ShardingConfig(strategy="III")))
    with pytest.raises(ConfigError, match="'XYZ' is no strategy"):
        ParallelConfig(strategy="XYZ")
