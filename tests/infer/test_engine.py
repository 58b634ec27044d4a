"""The engine among fakes: every row comes out once, whatever happens to those who work on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.base.errors import InferError
from shoestring.control.pools import PoolState, Resize
from shoestring.fleet import messages as m
from tests.infer.fakes import MB, Scene, StageAct, scene


def one(act: StageAct) -> dict[str, tuple[str, StageAct]]:
    return {"a": ("rows", act)}


def check(found: Scene, rows: int, given_up: tuple[int, ...] = ()) -> None:
    """All rows, each as it should be, and nothing left behind."""
    out = found.rows()
    assert sorted(out) == list(range(rows))
    for at, made in out.items():
        assert made == found.world.expected(at, given_up), at
    assert not found.world.segments and found.kids.closed


def test_rows_go_through_one_stage() -> None:
    found = scene(one(StageAct()), 230)
    assert found.run()
    check(found, 230)
    sizes = [len(items) for pool, items in found.world.tries if pool == "a"]
    assert max(sizes) == 8 and len([size for size in sizes if size < 8]) <= 6


def test_items_regroup_and_find_back() -> None:
    stages = {
        "detect": ("rows", StageAct(many=lambda item: item[0] % 4)),
        "classify": ("detect", StageAct()),
        "words": (
            "classify",
            StageAct(many=lambda item: item[1], error=lambda i: "odd" if i[0] % 7 == 1 else ""),
        ),
        "beside": ("rows", StageAct()),
    }
    found = scene(stages, 300, shard_rows=60, bad_rows={5: "damaged", 44: "damaged"})
    assert found.run()
    check(found, 300)


@pytest.mark.parametrize("kind", ["kill", "segv", "exit", "hang", "memory", "raise"])
def test_bad_items_alone_get_the_error(kind: str) -> None:
    found = scene(one(StageAct(act=lambda item: kind if item[0] in (17, 60, 61) else "")), 120)
    assert found.run()
    check(found, 120)


@pytest.mark.parametrize("kind", ["kill", "hang", "memory", "raise"])
def test_bad_rows_of_a_loader_get_the_error(kind: str) -> None:
    found = scene(one(StageAct()), 120)
    found.world.load_act = lambda at: kind if at in (3, 77) else ""
    assert found.run()
    check(found, 120)


def test_rows_that_are_given_up_go_through_nothing() -> None:
    given_up = dict.fromkeys((0, 10, 11, 99), "given up")
    found = scene(one(StageAct()), 100, given_up=given_up)
    assert found.run()
    check(found, 100, tuple(given_up))
    assert not {item[0] for _, items in found.world.tries for item in items} & given_up.keys()


@settings(max_examples=60)
@given(st.data())
def test_no_row_is_lost_whatever_dies_and_when(data: st.DataObject) -> None:
    many = data.draw(st.sampled_from([None, 0, 1, 3]))
    stages = {
        "a": ("rows", StageAct(many=None if many is None else (lambda item: (item[0] * many) % 5))),
        "b": ("a", StageAct(error=lambda item: "bad" if sum(item) % 11 == 3 else "")),
    }
    found = scene(
        stages, 150,
        shard_rows=data.draw(st.sampled_from([7, 40, 150])),
        batch=data.draw(st.sampled_from([1, 5, 64])),
        chunk_rows=data.draw(st.sampled_from([1, 13, 100])),
        processes=data.draw(st.integers(1, 3)),
        budget_bytes=data.draw(st.sampled_from([1000, 100 * MB])), bad_rows={9: "damaged"},
    )  # fmt: skip
    kills = data.draw(st.lists(st.floats(0.0, 1.5), max_size=6))
    sizes = data.draw(st.lists(st.integers(1, 3), max_size=3))
    for at_s in sorted(kills):
        if found.run(until=lambda at_s=at_s: found.world.clock.now() >= 1000.0 + at_s):
            break
        members = list(found.engine._crew.all())
        victim = members[data.draw(st.integers(0, len(members) - 1))] if members else None
        if victim is not None:
            victim.kid.kill()
        if sizes:
            found.engine._crew.resize(data.draw(st.sampled_from(["load", "a", "b", "write"])), sizes.pop())
    else:
        assert found.run()
    check(found, 150)


def test_a_bug_stops_the_job_with_its_row_and_traceback() -> None:
    found = scene(one(StageAct(act=lambda item: "raise")), 10_000, batch=32)
    with pytest.raises(InferError) as caught:
        found.engine.run()
    assert found.seat.broken_with is not None
    what, todo = found.seat.broken_with
    assert "stage a" in what and "Traceback" in what and "rows.txt#0" in what and todo == "mend it"
    assert caught.value.what == what and found.world.clock.now() < 1010.0
    assert not found.world.segments and not found.seat.done_leases


def test_all_rows_of_a_small_source_make_a_bug_too() -> None:
    found = scene(one(StageAct(act=lambda item: "raise")), 3)
    with pytest.raises(InferError):
        found.engine.run()


@pytest.mark.parametrize("kind", ["raise", "segv"])
def test_a_stage_that_cannot_be_set_up_stops_the_job(kind: str) -> None:
    found = scene(one(StageAct(setup=kind)), 100)
    with pytest.raises(InferError) as caught:
        found.engine.run()
    assert "stage a cannot be set up" in caught.value.what


def test_a_setup_that_hangs_stops_the_job() -> None:
    found = scene(one(StageAct(setup="hang")), 100, limits={"setup_s": 5.0})
    with pytest.raises(InferError) as caught:
        found.engine.run()
    assert "took longer than 5 s to set up" in caught.value.what


def test_a_file_is_tried_again() -> None:
    found = scene(one(StageAct()), 100)
    found.world.write_disasters.extend(["sink", "kill", "", "kill", "hang"])
    assert found.run()
    check(found, 100)


def test_a_sink_that_stays_full_breaks_the_job() -> None:
    found = scene(one(StageAct()), 100)
    found.world.write_disasters.extend(["sink"] * 20)
    with pytest.raises(InferError) as caught:
        found.run()
    assert "no space left" in caught.value.what and caught.value.todo == "mend it"


def test_a_coordinator_that_is_away_loses_and_doubles_nothing() -> None:
    found = scene(one(StageAct()), 200)
    assert not found.run(until=lambda: len(found.seat.done_leases) == 1)
    found.seat.away = True
    assert not found.run(until=lambda: found.world.clock.now() > 1060.0)
    assert len(found.seat.done_leases) == 1 and found.engine._desk.staged == 2
    found.seat.away = False
    assert found.run()
    check(found, 200)
    assert len(found.seat.done_leases) == 4


def test_what_is_late_is_removed() -> None:
    found = scene(one(StageAct()), 100)
    found.seat.late.add(1)
    assert not found.run(until=lambda: len(found.seat.done_leases) == 1 and bool(found.world.discarded))
    assert [staged.name for staged in found.world.discarded] == ["w0.1-1"]


def test_what_is_late_and_cannot_be_removed_is_told_and_stops_nothing() -> None:
    found = scene(one(StageAct()), 100)
    found.seat.late.add(1)
    found.world.discard_act = "sink"
    assert not found.run(until=lambda: any("in vain" in text for text in found.seat.faults))
    assert not found.world.discarded and not found.engine._write.busy
    assert "w0.1-1, staged in vain, cannot be removed: no space left" in found.seat.faults


def test_leaving_gives_back_what_is_not_begun_and_finishes_the_rest() -> None:
    found = scene(one(StageAct(item_s=0.01)), 1000, shard_rows=200)
    assert not found.run(until=lambda: len(found.seat.done_leases) == 1)
    found.seat.orders = m.ShardOrders(20.0, "the machine goes")
    at_s = found.world.clock.now()
    assert found.run()
    assert found.world.clock.now() < at_s + 15.0, "it does not wait for the end of its time"
    assert found.seat.backs and all(reason == "the machine goes" for _, reason in found.seat.backs)
    assert len(found.seat.done_leases) >= 2 and not found.seat.leases
    out = found.rows()
    assert all(made == found.world.expected(at) for at, made in out.items())
    assert not found.world.segments and found.kids.closed


def test_what_cannot_be_finished_in_time_goes_back() -> None:
    found = scene(one(StageAct(item_s=1.0)), 1000)
    assert not found.run(until=lambda: len(found.world.tries) == 2)
    found.engine.notice = "told to go (SIGTERM)"
    at_s = found.world.clock.now()
    assert found.run()
    assert found.world.clock.now() - at_s < 17.0
    assert not found.seat.leases and not found.seat.done_leases
    assert found.seat.tells[-1][2] == "told to go (SIGTERM)"


def test_others_get_shards_that_are_not_begun() -> None:
    found = scene(one(StageAct(item_s=0.1)), 1000)
    assert not found.run(until=lambda: len(found.engine._bench.shards) == 3)
    found.seat.orders = m.ShardOrders(give_back=1, reason="others idle")
    assert not found.run(until=lambda: len(found.seat.backs) == 1)
    assert found.seat.backs == [(3, "others idle")]


def test_a_shard_that_is_read_goes_back_as_long_as_no_stage_has_had_of_it() -> None:
    found = scene(one(StageAct(item_s=0.1)), 400, shard_rows=40, chunk_rows=40)

    def read_ahead() -> bool:
        shards = list(found.engine._bench.shards)
        return len(shards) == 3 and not shards[1].unloaded and not shards[1].begun

    assert not found.run(until=read_ahead), "the second is in memory, the first is worked on"
    assert next(iter(found.engine._bench.shards)).begun
    found.seat.orders = m.ShardOrders(give_back=3, reason="others idle")
    assert not found.run(until=lambda: len(found.seat.backs) == 2)
    assert [lease_id for lease_id, _ in found.seat.backs] == [2, 3]
    found.seat.orders = m.ShardOrders()
    assert found.run()
    assert all(made == found.world.expected(at) for at, made in found.rows().items())
    assert not found.world.segments


def test_what_only_the_next_stage_needs_is_let_go_early() -> None:
    stages = {"a": ("rows", StageAct()), "b": ("a", StageAct(item_s=0.01))}
    found = scene(stages, 200, shard_rows=200, stage_config={"keep": None}, proven=("a", "b"))
    seen = 0

    def look() -> bool:
        nonlocal seen
        passing = next((shard.passing for shard in found.engine._bench.shards), {})
        held = [items for name, items in found.world.segments.items() if name in passing]
        assert sum(map(len, held)) < 100
        seen = max(seen, len(held))
        return len(found.world.tries) > 40

    assert not found.run(until=look)
    assert seen > 0
    found.engine.close()


def test_memory_stays_within_the_budget() -> None:
    found = scene(one(StageAct(item_s=0.01)), 2000, shard_rows=500, chunk_rows=100, budget_bytes=200_000)
    found.world.item_bytes = 1000
    assert found.run()
    check(found, 2000)
    assert found.world.most_bytes < 500 * 1000 * 2 + 300_000


def test_a_shard_larger_than_the_budget_goes_through() -> None:
    found = scene(one(StageAct()), 300, shard_rows=300, chunk_rows=50, budget_bytes=1000)
    found.world.item_bytes = 1000
    assert found.run()
    check(found, 300)


def test_full_shared_memory_is_no_items_fault() -> None:
    found = scene(one(StageAct(item_s=0.01)), 600, shard_rows=100, budget_bytes=2000 * MB, batch=40)
    found.world.item_bytes, found.world.most_items = 4 * MB, 240  # of 1000 MB, 10 % of them left to others
    assert found.run(most_s=2000.0)
    check(found, 600)
    assert ("shared memory is full" in {reason for _, reason in found.seat.backs}) and found.seat.done_leases


def test_a_shard_that_fills_shared_memory_by_itself_ends_the_job_with_advice() -> None:
    found = scene(one(StageAct()), 600, shard_rows=300)
    found.world.item_bytes, found.world.most_items = 4 * MB, 240
    with pytest.raises(InferError, match="a shard of 300 rows needs more shared memory") as caught:
        found.run()
    assert "shards.rows to 75" in caught.value.todo


def test_a_process_that_holds_too_much_is_replaced() -> None:
    found = scene(one(StageAct(item_s=0.05)), 400, stage_config={"memory_bytes": 100 * MB})
    assert not found.run(until=lambda: len(found.seat.done_leases) == 1)
    leaky = next(kid for kid in found.kids.made if kid.pool == "a")
    leaky.memory_bytes = 101 * MB
    found.engine._crew.members("a")[0].base_bytes = 100 * MB  # it has grown there slowly
    assert found.run()
    check(found, 400)
    assert any("holds 106 of 105 MB: replaced" in fault for fault in found.seat.faults)
    assert all(not isinstance(made, str) for made in found.rows().values())


def test_the_policy_resizes_and_says_why() -> None:
    def decide(state: object, options: object) -> tuple[tuple[Resize, ...], str]:
        return ((Resize("a", 3),), "more") if len(found.engine._crew.members("a")) < 3 else ((), "")

    found = scene(one(StageAct(item_s=0.01)), 800, decide=decide)
    assert found.run()
    check(found, 800)
    changes = [change for change in found.seat.changes if change.action == "resize"]
    assert (
        changes[0].pool == "a"
        and changes[0].reason == "more"
        and changes[0].fields == {"from": 1.0, "to": 3.0}
    )
    shown = {pool.name: pool for pool in found.seat.tells[-1][0]}
    assert shown["a"].processes == 3 and shown["a"].row_s > 0


def test_two_that_grow_at_a_time_do_not_both_get_the_same_room_of_a_gpu() -> None:
    asked: list[dict[str, int]] = []

    def decide(state: PoolState, options: object) -> tuple[tuple[Resize, ...], str]:
        asked.append({pool.name: pool.most for pool in state.pools})
        return ((Resize("a", 2), Resize("b", 2)), "more") if len(asked) == 1 else ((), "")

    stages = {name: ("rows", StageAct(item_s=0.01)) for name in ("a", "b")}
    found = scene(
        stages, 800, processes=0, decide=decide, devices=("cuda:0",), stage_config={"device_share": 0.3}
    )
    assert found.run()
    check(found, 800)
    assert asked[0] == {"load": 0, "a": 2, "b": 2, "write": 0} and asked[-1]["b"] == 1
    changes = [(one.pool, one.fields["to"]) for one in found.seat.changes if one.action == "resize"]
    assert changes == [("a", 2.0)]


def test_a_stage_that_takes_many_batches_at_a_time_gets_them_one_by_one() -> None:
    found = scene(one(StageAct(room=4, act=lambda item: "raise" if item[0] == 30 else "")), 60)
    assert found.run()
    check(found, 60)
    assert max(len(items) for _, items in found.world.tries) == 1


def cheap(**more: int) -> dict[str, tuple[str, StageAct]]:
    """A stage whose batches cost the same whatever is in them: they grow for as long as they may."""
    return one(StageAct(batch_s=0.1, item_s=0.0, **more))


def sizes_of(found: Scene) -> list[int]:
    return [len(items) for _, items in found.world.tries]


@pytest.mark.parametrize(
    ("own_bytes", "processes", "most_items"), [(0, 1, 256), (0, 2, 128), (1 << 50, 1, 1024)]
)
def test_batches_grow_within_the_workers_memory(own_bytes: int, processes: int, most_items: int) -> None:
    """Of 300 MB (an item holds one) each process has its part; a bound that the user has set goes first."""
    config = {"memory_bytes": own_bytes}
    found = scene(
        cheap(item_held_bytes=MB), 100_000, shard_rows=20_000, chunk_rows=1000, batch=0, processes=processes,
        stage_config=config,
    )  # fmt: skip
    found.engine._tools.budget.processes_bytes = 300 * MB
    ended = found.run(until=lambda: max(sizes_of(found), default=0) > most_items)
    assert ended == (own_bytes != 1 << 50)
    assert max(sizes_of(found)) == (2048 if own_bytes == 1 << 50 else most_items)
    found.engine.close()


def grown(rows: int = 60_000, batch: int = 0, **more: int) -> Scene:
    return scene(cheap(**more), rows, shard_rows=20_000, chunk_rows=1000, batch=batch)


def test_a_grown_batch_whose_process_is_killed_halves_the_bound() -> None:
    """As the kernel does where memory runs out: each batch of more than 200 items dies."""
    found = grown(most_items=200)
    assert found.run()
    check(found, 60_000)
    assert max(sizes_of(found)) == 256 and sizes_of(found).count(256) == 1
    assert "a: killed with 256 items: taken for want of memory" in found.seat.faults


def test_first_batches_whose_processes_are_killed_halve_the_bound_the_second_time() -> None:
    found = grown(1000, batch=64, most_items=40)
    assert found.run()
    check(found, 1000)
    assert sizes_of(found).count(64) == 2 and sizes_of(found).count(32) > 20


def test_kills_by_others_do_not_shrink_batches() -> None:
    found = grown(10_000, batch=64)
    for kills in range(1, 9):
        assert not found.run(until=lambda kills=kills: len(sizes_of(found)) >= 10 * kills)
        next(iter(found.engine._crew.members("a"))).kid.kill()
    assert found.run()
    check(found, 10_000)
    assert sizes_of(found)[-2] == 64 and not any("want of memory" in fault for fault in found.seat.faults)


def test_one_kill_at_the_very_beginning_does_not_shrink_batches() -> None:
    found = grown(3000, batch=64)
    assert not found.run(until=lambda: len(sizes_of(found)) == 1)
    next(iter(found.engine._crew.members("a"))).kid.kill()
    assert found.run()
    check(found, 3000)
    assert max(sizes_of(found)[1:]) == 64


def test_a_row_that_kills_its_process_shrinks_nothing() -> None:
    act = StageAct(act=lambda item: "kill" if item[0] in (3, 900) else "")
    found = scene(one(act), 2000, shard_rows=1000, batch=64)
    assert found.run()
    check(found, 2000)
    assert sizes_of(found).count(64) > 10
    assert not any("want of memory" in fault for fault in found.seat.faults)


@pytest.mark.parametrize(("batch_s", "ahead"), [(0.2, True), (2.0, False)])
def test_the_next_batch_is_handed_out_ahead_where_many_wait(batch_s: float, ahead: bool) -> None:
    found = scene(one(StageAct(batch_s=batch_s)), 400, shard_rows=200, processes=2)
    hands: list[tuple[int, int]] = []  # most tasks of a process; batches that wait, or are in hand

    def note() -> bool:
        held = [len(member.tasks) for member in found.engine._crew.members("a")]
        waiting = -(-found.engine._stages["a"].waiting // 8)
        hands.append((max(held, default=0), waiting + sum(held)))
        return False

    assert found.run(until=note)
    check(found, 400)
    assert any(most == 2 for most, _ in hands) == ahead
    end = next(at for at in range(len(hands)) if all(left <= 2 for _, left in hands[at:]))
    assert all(most <= 1 for most, _ in hands[end:]), "the last two are for two processes"
