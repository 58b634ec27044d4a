"""The ledger's state machine: what each operation promises."""

from __future__ import annotations

import random

import msgspec
import pytest

from shoestring.base.errors import LedgerError
from shoestring.data.ledger import Ledger, LedgerSpec, Outcome

POISON = 37


def make(samples: int = 100, **settings: object) -> Ledger:
    return Ledger(LedgerSpec(**{"samples": samples, "max_dead_share": 1.0, **settings}))  # type: ignore[arg-type]


def take(ledger: Ledger, count: int, holder: str = "a", now: float = 0.0, tag: int = 0) -> int:
    lease = ledger.lease(now, holder, count, tag)
    assert lease is not None
    return lease.lease_id


def test_the_lowest_positions_come_first_and_returned_ones_before_new_ones() -> None:
    ledger = make()
    first, second = ledger.lease(0.0, "a", 10), ledger.lease(0.0, "a", 10)
    assert first is not None and second is not None
    ledger.release(first.lease_id)
    again = ledger.lease(0.0, "b", 15)
    assert again is not None and again.ranges == [(0, 10), (20, 25)]
    assert again.lease_id > second.lease_id > first.lease_id


def test_an_epoch_ends_when_all_is_done() -> None:
    ledger = make(25, epochs=2)
    while (lease := ledger.lease(0.0, "a", 7)) is not None:
        assert not ledger.finished
        assert ledger.complete(0.0, lease.lease_id, "a") is Outcome.COUNTED
    assert ledger.finished and ledger.counts().done == 50


def test_a_repeated_report_is_told_from_a_late_one() -> None:
    ledger = make(lease_s=10.0)
    counted, expired, released = take(ledger, 5), take(ledger, 5), take(ledger, 5)
    assert ledger.complete(9.0, counted, "a") is Outcome.COUNTED
    ledger.release(released)
    assert ledger.complete(10.0, expired, "a") is Outcome.LATE  # nobody called expire: the time counts
    ledger = Ledger.restore(ledger.spec, ledger.snapshot_bytes())
    assert ledger.complete(11.0, counted, "a") is Outcome.DUPLICATE
    assert ledger.complete(11.0, expired, "a") is Outcome.LATE
    assert ledger.complete(11.0, released, "a") is Outcome.LATE
    assert ledger.complete(11.0, 10**6, "a") is Outcome.LATE
    assert ledger.counts().done == 5


def test_only_the_holder_may_report() -> None:
    ledger = make()
    lease = take(ledger, 5)
    assert ledger.complete(0.0, lease, "b") is Outcome.LATE and ledger.counts().doing == 5


def test_a_part_can_be_reported() -> None:
    ledger = make()
    lease = take(ledger, 10)
    assert ledger.complete(0.0, lease, "a", [(0, 3), (8, 20)]) is Outcome.COUNTED
    assert ledger.counts().done == 5 and ledger.leases()[0].ranges == [(3, 8)]
    assert ledger.complete(0.0, lease, "a", [(0, 3)]) is Outcome.DUPLICATE
    with pytest.raises(LedgerError, match="cannot be"):
        ledger.complete(0.0, lease, "a", [(3, 6), (5, 8)])
    assert ledger.complete(0.0, lease, "a", [(3, 8)]) is Outcome.COUNTED
    assert ledger.complete(0.0, lease, "a") is Outcome.DUPLICATE
    assert ledger.counts().done == 10


def test_renewed_leases_live_on_and_others_expire() -> None:
    ledger = make(lease_s=10.0)
    old, kept = take(ledger, 5, "a"), take(ledger, 5, "b")
    assert ledger.renew(6.0, "b") == 1 and ledger.renew(6.0, "nobody") == 0
    assert [lease.lease_id for lease in ledger.expire(12.0)] == [old]
    assert ledger.complete(12.0, kept, "b") is Outcome.COUNTED


def test_a_renewed_lease_does_not_shelter_younger_ones() -> None:
    ledger = make(lease_s=10.0)
    renewed, younger = take(ledger, 5, "a", now=0.0), take(ledger, 5, "b", now=1.0)
    ledger.renew(6.0, "a")
    assert [lease.lease_id for lease in ledger.expire(11.0)] == [younger]
    assert [lease.lease_id for lease in ledger.expire(16.0)] == [renewed]


def test_what_was_lost_too_often_is_handed_out_alone() -> None:
    ledger = make(max_attempts=1)
    first = take(ledger, 10, "kept")
    take(ledger, 8, "lost")
    ledger.release_holder("lost")
    ledger.release(first)
    taken = [lease.ranges for lease in iter(lambda: ledger.lease(0.0, "a", 50), None) if lease]
    assert taken == [[(0, 10)], [(10, 14)], [(14, 18)], [(18, 68)], [(68, 100)]]


def test_leases_of_a_restored_ledger_get_their_time_again() -> None:
    ledger = make(lease_s=10.0)
    lease = take(ledger, 5, now=1000.0)
    ledger = Ledger.restore(ledger.spec, ledger.snapshot_bytes())
    assert ledger.expire(3.0) == [] == ledger.expire(12.9)  # the clock of another boot
    assert [le.lease_id for le in ledger.expire(13.0)] == [lease]


def test_leases_of_steps_do_not_expire_and_are_settled_by_their_tags() -> None:
    ledger = make(lease_s=1.0)
    for step in (1, 2, 3):
        take(ledger, 10, "a", tag=step)
    assert ledger.expire(100.0) == [] == ledger.release_holder("a")
    assert ledger.has_tags_upto(1) and not ledger.has_tags_upto(0)
    assert ledger.complete_tags(0.0, 1) == 10 and ledger.release_tags(0.0, 2) == 10
    assert (ledger.counts().done, ledger.counts().doing, ledger.counts().todo) == (10, 10, 80)
    assert not ledger.has_tags_upto(1) and ledger.has_tags_upto(2)


def test_a_sample_that_fails_k_times_is_dead_with_its_last_error() -> None:
    ledger = make(max_attempts=3)
    for attempt in range(3):
        lease = take(ledger, 5, tag=1)
        dead = ledger.fail_tagged(0.0, 1, "a", {2: f"error {attempt}", 99: "not leased"})
        assert ledger.fail_tagged(0.0, 1, "a", {2: "a repeated report"}) == 0
        assert dead == (attempt == 2)
        ledger.release(lease)
    letters = ledger.dead_letters()
    assert [(le.position, le.attempts, le.error) for le in letters] == [(2, 3, "error 2")]
    assert ledger.counts().dead == 1


def test_success_forgives_earlier_failures() -> None:
    ledger = make(max_attempts=2)
    lease = take(ledger, 5)
    ledger.fail(0.0, lease, {2: "once"})
    assert ledger.complete(0.0, take(ledger, 1), "a") is Outcome.COUNTED
    assert ledger.snapshot().letters == [] and ledger.counts().dead == 0


def test_long_errors_are_cut() -> None:
    ledger = make(max_attempts=1)
    ledger.fail(0.0, take(ledger, 1), {0: "x" * 10**6})
    assert len(ledger.snapshot_bytes()) < 10_000 and ledger.dead_letters()[0].error.startswith("xxx")


def test_too_many_dead_stop_the_run_and_a_larger_share_lets_it_go_on() -> None:
    ledger = make(max_attempts=1, max_dead_share=0.02)
    lease = take(ledger, 10)
    ledger.fail(0.0, lease, {0: "bad", 1: "bad"})
    with pytest.raises(LedgerError, match="3 of 100 samples are dead.*the third"):
        ledger.fail(0.0, lease, {2: "the third"})
    with pytest.raises(LedgerError, match="dead"):
        ledger.lease(0.0, "a", 1)
    ledger.check()
    spec = LedgerSpec(samples=100, max_attempts=1, max_dead_share=0.5)
    assert Ledger.restore(spec, ledger.snapshot_bytes()).lease(0.0, "a", 1) is not None


def test_a_sample_that_kills_its_worker_is_found_and_its_neighbours_are_done() -> None:
    ledger = make(max_attempts=3)
    deaths = 0
    while not ledger.finished:
        lease = ledger.lease(0.0, "a", 32)
        assert lease is not None
        if any(start <= POISON < stop for start, stop in lease.ranges):
            deaths += 1
            ledger.release_holder("a")
        else:
            ledger.complete(0.0, lease.lease_id, "a")
        ledger.check()
    assert [letter.position for letter in ledger.dead_letters()] == [POISON]
    assert "holder was gone" in ledger.dead_letters()[0].error
    assert ledger.counts().done == 99 and ledger.snapshot().suspects == []
    assert deaths <= 3 + 6  # k losses of the whole, then one per halving of 32 samples


def test_at_most_once_never_hands_out_again_what_may_have_been_used() -> None:
    ledger = make(delivery="at_most_once", lease_s=10.0, max_attempts=5)
    seen: list[int] = []
    rng = random.Random(0)
    now = 0.0
    while (lease := ledger.lease(now, "a", 7)) is not None:
        seen += [p for start, stop in lease.ranges for p in range(start, stop)]
        ending = rng.choice(("done", "expire", "holder", "fail"))
        if ending == "done":
            ledger.complete(now, lease.lease_id, "a")
        elif ending == "expire":
            now += 10.0
            assert ledger.complete(now, lease.lease_id, "a") is Outcome.LATE
        elif ending == "holder":
            ledger.release_holder("a")
        else:
            ledger.fail(now, lease.lease_id, {lease.ranges[0][0]: "bad"})
            ledger.complete(now, lease.lease_id, "a")
    assert seen == list(range(100)) and ledger.finished
    counts = ledger.counts()
    assert counts.skipped > 0 < counts.dead and counts.done + counts.dead == 100


def test_at_most_once_skips_steps_that_nobody_kept() -> None:
    ledger = make(delivery="at_most_once")
    take(ledger, 10, tag=1)
    assert ledger.release_tags(0.0, 0) == 10 and ledger.counts().skipped == 10


def test_a_checkpoint_counts_work_in_flight_as_not_begun() -> None:
    ledger = make()
    done, open_ = take(ledger, 10), take(ledger, 10)
    ledger.complete(0.0, done, "a")
    restored = Ledger.restore(ledger.spec, ledger.snapshot_bytes(in_flight="todo"))
    assert (restored.counts().done, restored.counts().doing, restored.counts().todo) == (10, 0, 90)
    assert restored.complete(0.0, open_, "a") is Outcome.LATE is restored.complete(0.0, done, "a")
    assert ledger.counts().doing == 10


def test_a_snapshot_of_other_data_or_none_at_all_is_refused() -> None:
    data = make(100).snapshot_bytes()
    with pytest.raises(LedgerError, match="is about"):
        Ledger.restore(LedgerSpec(samples=101), data)
    with pytest.raises(LedgerError, match="is about"):
        Ledger.restore(LedgerSpec(samples=100, delivery="at_most_once"), data)
    for damaged in (b"", b"junk", data[:-3]):
        with pytest.raises(LedgerError, match="not a ledger's snapshot"):
            Ledger.restore(LedgerSpec(samples=100), damaged)


def test_nonsense_is_refused() -> None:
    bad = ({"samples": 0}, {"epochs": 0}, {"max_attempts": 0}, {"lease_s": 0.0}, {"max_dead_share": 2.0})
    for settings in bad:
        with pytest.raises(LedgerError):
            make(**settings)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="0 samples"):
        make().lease(0.0, "a", 0)


@pytest.mark.parametrize("pattern", ["in flight", "any half of the shards"])
def test_a_billion_samples_half_done_stay_below_a_megabyte(pattern: str) -> None:
    shard = 1000
    ledger = Ledger(LedgerSpec(samples=10**9, shard_size=shard))
    head, leases = ledger.snapshot().head, []
    if pattern == "in flight":
        take(ledger, 10**9 // 2, "all")
        ledger.complete(0.0, 1, "all")
        leases = [take(ledger, shard, f"w{i % 1000}") for i in range(20_000)]
        for lease_id in leases[::2]:
            ledger.release(lease_id)
        assert len(ledger.leases()) == 10_000
    else:
        rng = random.Random(0)
        returned = [(i * shard, (i + 1) * shard) for i in range(10**6) if rng.random() < 0.5]
        state = msgspec.structs.replace(
            ledger.snapshot(), head=msgspec.structs.replace(head, frontier=10**9), returned=returned
        )
        ledger = Ledger.restore(ledger.spec, state)
    data = ledger.snapshot_bytes()
    assert len(data) < 1_000_000
    restored = Ledger.restore(ledger.spec, data)
    assert restored.counts() == ledger.counts() and restored.snapshot_bytes() == data


def test_check_finds_a_position_with_two_states() -> None:
    ledger = make()
    take(ledger, 10)
    ledger._returned.add(5, 6)
    with pytest.raises(LedgerError, match="contradicts"):
        ledger.check()
