"""Cluster files: what is written is read back, and what cannot be is refused with its place."""

from __future__ import annotations

import itertools
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from shoestring.base.errors import ConfigError
from shoestring.cluster.topology import (
    Cluster,
    Device,
    Group,
    Link,
    Node,
    check_against,
    check_cluster,
    load_cluster,
    save_cluster,
    usable_memory_bytes,
)
from tests.cluster.clusters import hosts

RATES = st.floats(min_value=1e-3, max_value=1e18)
TEXTS = st.text(
    st.characters(exclude_characters="/", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8
)
LINKS = st.builds(
    Link, bytes_per_s=RATES, latency_s=st.floats(min_value=0, max_value=10), shared=st.booleans()
)
DEVICES = st.builds(
    Device,
    kind=st.sampled_from(("cpu", "cuda")),
    cores=st.integers(1, 256),
    memory_bytes=st.integers(1, 2**50),
    flops_per_s=st.dictionaries(st.sampled_from(("1", "2", "4")), RATES),
    name=st.text(max_size=10).filter(lambda text: text.isprintable()),
    workers=st.integers(1, 4),
    rates=st.dictionaries(st.sampled_from(("bf16", "fp32")), RATES),
    nominal_flops_per_s=st.floats(min_value=0, max_value=1e18),
)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    names = draw(st.lists(TEXTS, min_size=1, max_size=4, unique=True))
    nodes = tuple(
        Node(
            name=name,
            devices=tuple(draw(st.lists(DEVICES, min_size=1, max_size=3))),
            address=draw(st.sampled_from(("", "10.77.0.1", "::1"))),
            price_per_hour=draw(st.floats(min_value=0, max_value=100)),
        )
        for name in names
    )
    workers = draw(st.permutations([worker for node in nodes for worker in node.workers]))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(workers) - 1)), max_size=3)))
    edges = [0, *(cut for cut in cuts if cut < len(workers)), len(workers)]
    groups = tuple(
        Group(name=f"group {i}", workers=tuple(workers[a:b]))
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    )
    return Cluster(
        nodes=nodes,
        inside=draw(LINKS),
        between=draw(LINKS),
        groups=draw(st.sampled_from((groups, ()))),
        suspects=draw(st.dictionaries(TEXTS, st.sampled_from(("slow", 'says "no"')), max_size=2)),
    )


@hypothesis.given(clusters())
@hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> None:
    path = tmp_path_factory.mktemp("cluster") / "cluster.toml"
    save_cluster(cluster, path)
    assert load_cluster(path) == cluster
    check_against(cluster, list(reversed(cluster.workers)))


GOOD = """
[inside]
bytes_per_s = 1e9
latency_s = 0.0
[between]
bytes_per_s = 1e8
latency_s = 1e-3
shared = true
[[nodes]]
name = "a"
devices = [{ kind = "cpu", cores = 2, memory_bytes = 1000, workers = 2 }]
[[nodes]]
name = "b"
devices = [{ kind = "cpu", cores = 2, memory_bytes = 1000, workers = 2 }]
[[groups]]
name = "one"
workers = ["a/0", "a/1"]
[[groups]]
name = "two"
workers = ["b/0", "b/1"]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["b/0", "b/1"]', '["b/0", "b/1", "a/0"]', "worker a/0 is there twice among the groups"),
        ('["b/0", "b/1"]', '["b/0", "b/7"]', "unknown workers: b/7"),
        ('["b/0", "b/1"]', '["b/0"]', "no group names b/1"),
        ('"two"', '"one"', "group one is there twice"),
        ('name = "b"', 'name = "a"', "node a is there twice"),
        ('name = "b"', 'name = "b/c"', "no name for a node"),
        ("bytes_per_s = 1e8", "bytes_per_s = nan", "between.bytes_per_s is nan"),
        ("bytes_per_s = 1e8", "bytes_per_s = 0", "between.bytes_per_s is 0"),
        ("bytes_per_s = 1e8", "bytes_per_s = inf", "between.bytes_per_s is inf"),
        ("latency_s = 1e-3", "latency_s = -1", "between.latency_s is -1"),
        ("memory_bytes = 1000", "memory_bytes = 0", "memory_bytes of a is 0"),
        ('kind = "cpu"', 'kind = "tpu"', "kind 'tpu'"),
        ("cores = 2", "rates = { bf16 = -1.0 }, cores = 2", "rate 'bf16' of a is -1.0"),
        ("cores = 2", "corse = 2", "unknown setting `nodes.0.devices.0.corse`"),
        ("cores = 2", 'cores = "two"', "cores"),
        ("[between]", "[between", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert len(load_cluster(path).workers) == 4
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_cluster(path)
    assert said in caught.value.what and "mine.toml" in caught.value.what
    assert caught.value.todo


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.toml"):
        load_cluster(tmp_path / "none.toml")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        save_cluster(hosts(1, 1), tmp_path / "file" / "cluster.toml")


@pytest.mark.parametrize(
    ("files", "expected_kb"),
    [
        ({}, 8000),
        ({"memory.max": "max"}, 8000),
        ({"memory.max": 5000}, 5000),
        ({"memory.max": 5000, "memory.current": 1000}, 4000),
        ({"memory.max": 5000, "memory.current": 3000, "memory.stat": "inactive_file"}, 3000),
        ({"memory.max": 90_000, "memory.current": 1000}, 8000),
        ({"memory.max": 5000, "memory.current": 5000}, 1024),
        ({"memory/memory.limit_in_bytes": 5000}, 5000),
        (
            {
                "memory/memory.limit_in_bytes": 5000,
                "memory/memory.usage_in_bytes": 3000,
                "memory/memory.stat": "total_inactive_file",
            },
            3000,
        ),
        ({"memory/memory.limit_in_bytes": 9223372036854771712 // 1024}, 8000),
    ],
)
def test_memory_is_what_the_machine_has_and_a_container_may_have(
    tmp_path: Path, files: dict[str, str | int], expected_kb: int
) -> None:
    """Of the files' cache 1000 kB are pages that can go."""
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    (tmp_path / "memory").mkdir()
    for name, value in files.items():
        text = f"{value * 1024}" if isinstance(value, int) else value
        if name.endswith("stat"):
            text = f"anon 7\n{value} {1000 * 1024}\nactive_file 9\n"
        (tmp_path / name).write_text(f"{text}\n")
    assert usable_memory_bytes(tmp_path / "meminfo", tmp_path) == expected_kb * 1024


def test_no_nodes_is_no_cluster() -> None:
    with pytest.raises(ConfigError, match="there are no nodes"):
        check_cluster(hosts(1, 1).model_copy(update={"nodes": ()}), "here")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["host0/0", "host0/1", "host1/0"], "it names host1/1, which are not there"),
        (["host0/0", "host0/1", "host1/0", "host1/1", "host2/0"], "it does not name host2/0"),
        (["host0/0", "host0/1", "host1/0", "host1/1", "host1/1"], "twice: host1/1"),
        ([], "host0/0, host0/1, host1/0, host1/1, which are not there"),
    ],
)
def test_machines_that_differ_from_the_file_are_named(found: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_against(hosts(2, 2), found, "cluster.toml")
    assert said in caught.value.what and caught.value.what.startswith("cluster.toml")
    assert "shoestring probe" in caught.value.todo
