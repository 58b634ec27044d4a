"""Rings of real processes on loopback: equal sums by every method, scopes side by side, lost peers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout, equal_groups
from shoestring.parallel import rings
from shoestring.parallel.group import RendezvousStore
from shoestring.parallel.rings.choice import SMALL_BYTES, Method, Operation, Scope
from shoestring.parallel.rings.schedule import START, Schedule
from shoestring.parallel.rings.seats import Seat
from tests.parallel.test_group import FolderTable, in_processes

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)
RING_METHODS: tuple[Method, ...] = ("flat", "sequential", "overlap", "direct", "backend")
OPERATIONS: tuple[Operation, ...] = ("all_gather", "reduce_scatter", "all_reduce")
SCOPES: tuple[Scope, ...] = ("world", "group", "peers")
# Chunks of 16 fp32: blocks of 0, 1 and many chunks, the last one uneven.
CHUNK_BYTES = 64
LAYOUTS = {
    "1x2": equal_groups(2, 2),
    "2x1": equal_groups(2, 1),
    "2x2 crossed": Layout(((0, 3), (2, 1))),
    "2x3": equal_groups(6, 3),
    "3x2": equal_groups(6, 2),
}


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def ring_of(
    tmp_path: Path, layout: Layout, rank: int, timeout_s: float = 20.0, chunk_bytes: int = CHUNK_BYTES
) -> rings.Rings:
    store = dist.FileStore(str(tmp_path / "store"), layout.size)
    return rings.Rings(layout, rank=rank, store=store, timeout_s=timeout_s, chunk_bytes=chunk_bytes)


def numbers(items: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers whose sums over some ranks are exact in every dtype."""
    return (torch.arange(items) * 7 + rank * 3).remainder(5).to(dtype)


def check_sums(ring: rings.Rings, scope: Scope, method: Method, items: int, dtype: torch.dtype) -> None:
    members = Seat.of(scope, ring.layout, ring.rank, "rank").members
    expected = torch.stack([numbers(items, rank, dtype) for rank in members]).sum(0).to(dtype)
    case = (scope, method, items, dtype)
    whole = numbers(items, ring.rank, dtype)
    ring.all_reduce(whole, scope, method).wait()
    assert torch.equal(whole, expected), case
    scratch = numbers(items, ring.rank, dtype)
    shard = torch.empty_like(ring.block(scratch, scope))
    gathered = torch.empty(items, dtype=dtype)
    # The second uses what the first makes: collectives of a scope run in the order issued.
    first = ring.reduce_scatter(shard, scratch, scope, method)
    second = ring.all_gather(gathered, shard, scope, method)
    first.wait()
    second.wait()
    assert torch.equal(shard, ring.block(expected, scope)), case
    assert torch.equal(gathered, expected), case


def check_bits(ring: rings.Rings) -> None:
    """Sums that round are the same on all ranks, and by both hierarchical methods."""
    results = {}
    for method in RING_METHODS:
        torch.manual_seed(ring.rank)
        result = torch.randn(1003)
        ring.all_reduce(result, method=method).wait()
        everyone = torch.empty(1003 * ring.layout.size)
        ring.block(everyone).copy_(result)
        ring.all_gather(everyone, ring.block(everyone), method="direct").wait()
        assert all(torch.equal(one, result) for one in everyone.split(1003)), method
        results[method] = result
    assert torch.equal(results["overlap"], results["sequential"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_method_makes_the_plain_sum(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]

    def body(rank: int) -> None:
        for order in ("rank", "nested"):
            store = dist.FileStore(str(tmp_path / order), layout.size)
            with rings.Rings(
                layout, rank=rank, store=store, timeout_s=20.0, chunk_bytes=CHUNK_BYTES, order=order
            ) as ring:
                for scope in SCOPES:
                    for method in RING_METHODS:
                        for items in (1, 331):
                            check_sums(ring, scope, method, items, torch.float32)
                    for dtype in DTYPES if order == "rank" else ():
                        check_sums(ring, scope, "overlap", 97, dtype)
                        check_sums(ring, scope, "backend", 0, dtype)
                check_bits(ring)

    assert in_processes(layout.size, body) == [0] * layout.size


def test_nested_blocks_are_cut_from_the_groups_blocks(tmp_path: Path) -> None:
    layout = equal_groups(4, 2)

    def body(rank: int) -> None:
        store = dist.FileStore(str(tmp_path / "store"), 4)
        with rings.Rings(layout, rank=rank, store=store, order="nested") as ring:
            whole = torch.arange(64)
            assert torch.equal(ring.block(whole), ring.block(ring.block(whole, "group"), "peers"))
            everyone = torch.zeros(64, dtype=torch.int64)
            ring.block(everyone).copy_(ring.block(whole))
            ring.all_gather(ring.block(everyone, "group"), ring.block(everyone), "peers").wait()
            ring.all_gather(everyone, ring.block(everyone, "group"), "group").wait()
            assert torch.equal(everyone, whole)

    assert in_processes(4, body) == [0] * 4


def run_on_paper(layout: Layout, operation: Operation, method: Method) -> dict[int, list[list[int]]]:
    """Run a collective's schedules on lists of contributors; rank -> contributors of each of its blocks."""
    seats = [Seat.of("world", layout, rank, "nested") for rank in range(layout.size)]
    whole = operation != "all_gather"
    held = {
        rank: [[rank] if whole or block == seat.block else [] for block in range(seat.size)]
        for rank, seat in enumerate(seats)
    }
    stages = [seat.schedules(operation, method) for seat in seats]
    for stage in range(len(stages[0])):
        follow_hops([schedules[stage] for schedules in stages], held)
    return held


def follow_hops(schedules: list[Schedule], held: dict[int, list[list[int]]]) -> None:
    """Each hop as soon as what it waits for is done, at each rank."""
    done: list[set[int]] = [{START} for _ in schedules]
    carried: dict[tuple[int, int, int], list[int]] = {}
    moved = True
    while moved:
        moved = False
        for rank, schedule in enumerate(schedules):
            for number, hop in enumerate(schedule):
                key = (number, rank, hop.send_to)
                if key not in carried and hop.send_after in done[rank]:
                    carried[key] = list(held[rank][hop.sends])
                    moved = True
                come = (number, hop.receive_from, rank)
                if number not in done[rank] and hop.add_after in done[rank] and come in carried:
                    block = held[rank][hop.receives]
                    block[:] = block + carried[come] if hop.adds else carried[come]
                    done[rank].add(number)
                    moved = True
    assert all(done[rank] == {START, *range(len(schedule))} for rank, schedule in enumerate(schedules))


@pytest.mark.parametrize("method", ["flat", "sequential", "overlap", "direct"])
@pytest.mark.parametrize(("count", "size"), [(2, 4), (4, 2), (3, 5), (5, 3)])
def test_schedules_count_each_rank_once(count: int, size: int, method: Method) -> None:
    layout = equal_groups(count * size, size)
    everyone = list(range(layout.size))
    for rank, blocks in run_on_paper(layout, "all_reduce", method).items():
        assert all(sorted(block) == everyone for block in blocks), rank
    for rank, blocks in run_on_paper(layout, "reduce_scatter", method).items():
        assert sorted(blocks[layout.shard("G", rank)[0]]) == everyone
    for blocks in run_on_paper(layout, "all_gather", method).values():
        owners = {layout.shard("G", rank)[0]: [rank] for rank in everyone}
        assert blocks == [owners[block] for block in range(layout.size)]


def blocks_leaving_a_group(layout: Layout, method: Method) -> int:
    leaving = 0
    for rank in layout.groups[0]:
        for schedule in Seat.of("world", layout, rank, "rank").schedules("all_reduce", method):
            leaving += sum(hop.send_to not in layout.groups[0] for hop in schedule)
    return leaving


@pytest.mark.parametrize(("count", "size"), [(2, 2), (2, 4), (4, 2), (3, 5)])
def test_bytes_between_groups_are_as_few_as_can_be(count: int, size: int) -> None:
    layout = equal_groups(count * size, size)
    assert blocks_leaving_a_group(layout, "flat") == 2 * (layout.size - 1)
    for method in ("overlap", "sequential"):
        assert blocks_leaving_a_group(layout, method) == 2 * (count - 1) * size


def test_scopes_run_at_the_same_time(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        with ring_of(tmp_path, equal_groups(4, 2), rank, timeout_s=5.0) as ring:
            inside, between = torch.ones(100), torch.ones(100)
            # Position 0 issues the group's first, 1 the peers': in one queue they would wait for each other.
            if rank % 2 == 0:
                group = ring.all_reduce(inside, "group", "flat")
                ring.all_reduce(between, "peers", "flat").wait()
            else:
                ring.all_reduce(between, "peers", "flat").wait()
                group = ring.all_reduce(inside, "group", "flat")
            group.wait()
            assert float(inside.sum() + between.sum()) == 400.0

    assert in_processes(4, body) == [0] * 4


def test_the_callers_thread_is_free_meanwhile(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        with ring_of(tmp_path, equal_groups(2, 1), rank) as ring:
            if rank == 1:
                until = time.monotonic() + 20
                while not (tmp_path / "computed").exists():
                    assert time.monotonic() < until
                    time.sleep(0.002)
            tensor = torch.ones(1000)
            pending = ring.all_reduce(tensor, method="flat")
            if rank == 0:
                assert not pending.done()
                (tmp_path / "computed").touch()
            pending.wait()
            assert pending.done() and float(tensor.sum()) == 2000.0

    assert in_processes(2, body) == [0, 0]


def expect_loss(ring: rings.Rings, method: Method, within_s: float, since: Callable[[], float]) -> None:
    """A long collective fails in time; so does whatever is asked for later, at once, and closing does not
    hang."""
    pending = ring.all_reduce(torch.ones(2**22), method=method)
    with pytest.raises(rings.PeerLostError, match=f"all_reduce of 16.0 MiB over world by {method}"):
        for _ in range(1000):
            pending.wait()
            pending = ring.all_reduce(torch.ones(2**22), method=method)
    assert time.monotonic() - since() < within_s
    with pytest.raises(rings.PeerLostError):
        ring.all_reduce(torch.ones(1), "group").wait()
    began = time.monotonic()
    ring.close()
    ring.close()
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("method", ["overlap", "flat", "backend"])
def test_a_killed_peer_is_a_lost_peer(tmp_path: Path, method: Method) -> None:
    when = tmp_path / "when"

    def body(rank: int) -> None:
        ring = ring_of(tmp_path, equal_groups(4, 2), rank, timeout_s=60.0, chunk_bytes=2**16)
        if rank == 3:
            ring.all_reduce(torch.ones(2**22), method=method).wait()
            ring.all_reduce(torch.ones(2**22), method=method)
            when.write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)
        expect_loss(ring, method, 2.0, lambda: float(when.read_text()))

    assert in_processes(4, body) == [0, 0, 0, -signal.SIGKILL]


def test_a_silent_peer_is_a_lost_peer_after_the_time_out(tmp_path: Path) -> None:
    """Rank 2 is stopped; the last of the others to finish lets it go on."""

    def body(rank: int) -> None:
        ring = ring_of(tmp_path, equal_groups(4, 2), rank, timeout_s=1.0, chunk_bytes=2**16)
        pid = tmp_path / "pid"
        if rank == 2:
            ring.all_reduce(torch.ones(2**22), method="overlap").wait()
            ring.all_reduce(torch.ones(2**22), method="overlap")
            pid.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        began = time.monotonic()
        expect_loss(ring, "overlap", 5.0, lambda: began)
        (tmp_path / f"done-{rank}").touch()
        until = time.monotonic() + 20
        while len(list(tmp_path.glob("done-*"))) < 3:
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(int(pid.read_text()), signal.SIGCONT)

    assert in_processes(4, body) == [0] * 4


def test_the_rendezvous_of_a_round_will_do(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        store = RendezvousStore(FolderTable(tmp_path), 10.0)
        with rings.Rings([[0, 1], [2, 3]], rank=rank, store=store, timeout_s=20.0) as ring:
            tensor = torch.full((7,), float(rank))
            assert ring.all_reduce(tensor).choice.method == "backend"
            pending = ring.all_reduce(torch.ones(3), method=rings.Choice("overlap", "the planner measured"))
            pending.wait()
            assert pending.choice.reason == "the planner measured"
            assert torch.equal(tensor, torch.full((7,), 6.0))

    assert in_processes(4, body) == [0] * 4


def test_threads_with_a_store_in_memory_and_the_default_group(tmp_path: Path) -> None:
    store = dist.HashStore()
    sums = [torch.ones(10), torch.ones(10)]

    def member(rank: int) -> None:
        with rings.Rings([[0], [1]], rank=rank, store=store, scopes=["peers"], timeout_s=10.0) as ring:
            ring.all_reduce(sums[rank], "peers", "flat").wait()

    members = [threading.Thread(target=member, args=(rank,)) for rank in range(2)]
    for thread in members:
        thread.start()
    for thread in members:
        thread.join()
    assert all(float(one.sum()) == 20.0 for one in sums)

    def body(rank: int) -> None:
        file = dist.FileStore(str(tmp_path / "default"), 2)
        dist.init_process_group("gloo", store=file, rank=rank, world_size=2)
        with rings.Rings(equal_groups(2, 2), timeout_s=10.0) as ring:
            tensor = torch.ones(3)
            ring.all_reduce(tensor).wait()
            assert float(tensor.sum()) == 6.0
        dist.destroy_process_group()

    assert in_processes(2, body) == [0, 0]


def test_who_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    for store in (
        dist.FileStore(str(tmp_path / "store"), 2),
        RendezvousStore(FolderTable(tmp_path / "t", 0.3), 0.3),
    ):
        with pytest.raises(rings.PeerLostError):
            rings.Rings(equal_groups(2, 2), rank=0, store=store, timeout_s=0.3)
    assert time.monotonic() - began < 5.0


def test_one_rank_needs_no_network() -> None:
    with rings.Rings([[0]], rank=0, store=dist.HashStore()) as ring:
        tensor = torch.arange(5.0)
        ring.all_reduce(tensor).wait()
        output, shard = torch.empty(5), torch.empty(5)
        ring.all_gather(output, tensor).wait()
        ring.reduce_scatter(shard, tensor, "group").wait()
        assert torch.equal(output, tensor) and torch.equal(shard, tensor)


def test_what_does_not_fit_is_refused() -> None:
    with rings.Rings([[0]], rank=0, store=dist.HashStore(), scopes=["world"]) as ring:
        with pytest.raises(ConfigError, match="block 0 of 1 .* has 4"):
            ring.all_gather(torch.empty(4), torch.empty(3))
        with pytest.raises(ConfigError, match="contiguous"):
            ring.all_reduce(torch.empty(4, 4).t())
        with pytest.raises(ConfigError, match="'peers' is not connected"):
            ring.all_reduce(torch.empty(4), "peers")
        with pytest.raises(ConfigError, match="no ring method 'round'"):
            ring.all_reduce(torch.empty(4), method="round")  # type: ignore[arg-type]
    with pytest.raises(rings.PeerLostError, match="closed"):
        ring.all_reduce(torch.empty(4))
    with pytest.raises(ConfigError, match="no default process group"):
        rings.Rings([[0]])
    with pytest.raises(ConfigError, match="cannot be used as equal groups"):
        rings.Rings([[0, 1], [2]], rank=0, store=dist.HashStore())


def test_the_rule_behind_auto() -> None:
    def choice(size_bytes: int, layout: Layout, scope: Scope = "world", one_host: bool = False) -> str:
        return rings.choose(rings.Request("all_reduce", scope, size_bytes, layout, one_host)).method

    two = equal_groups(4, 2)
    assert choice(SMALL_BYTES + 1, two) == "overlap"
    assert choice(SMALL_BYTES, two) == "backend"
    assert choice(2**24, two, one_host=True) == "backend"
    assert choice(2**24, two, "peers") == "flat"
    # Links that are alike are one group (cluster.clustering): then the backend's own all-reduce is as good.
    assert choice(2**24, equal_groups(4, 4)) == choice(2**24, equal_groups(4, 1)) == "backend"
