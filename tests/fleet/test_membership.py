"""Membership: who is current, who is hung, and when a round can form."""

from __future__ import annotations

import pytest

from shoestring.fleet.config import MemberConfig
from shoestring.fleet.membership import Formed, Membership

CONFIG = MemberConfig(
    workers=2, heartbeat_timeout_s=15.0, hang_timeout_s=300.0, start_timeout_s=120.0, join_grace_s=5.0,
    backoff_s=0.1, same_failures=3, healthy_steps=20,
)  # fmt: skip


def started(now: float = 0.0, names: tuple[str, ...] = ("w0", "w1")) -> Membership:
    members = Membership(CONFIG, names)
    assert members.start_due(now) == names
    return members


def in_round(step: int = 0) -> Membership:
    members = started()
    for name in ("w0", "w1"):
        members.join(0.0, name, step, -1)
    assert members.try_form(0.0, 0) is not None
    return members


def test_incarnations_grow_and_the_old_one_is_refused() -> None:
    members = started()
    assert members.current("w0", 1) and not members.current("w0", 0) and not members.current("w9", 1)
    members.lost(1.0, "w0", "boom", newest_step=0)
    assert not members.current("w0", 1)
    assert members.start_due(1.05) == ()
    assert members.start_due(1.1) == ("w0",)
    assert members.current("w0", 2) and not members.current("w0", 1)


def test_the_first_round_waits_for_those_who_start_but_not_for_ever() -> None:
    members = started()
    members.join(1.0, "w0", -1, -1)
    assert members.try_form(1.0, 0) is None
    assert members.try_form(5.9, 0) is None
    assert members.try_form(6.0, 0) == Formed(("w0",), -1, -1)


def test_survivors_with_state_do_not_wait() -> None:
    members = in_round()
    members.lost(1.0, "w1", "boom", newest_step=3)
    members.join(1.0, "w0", 3, 1)
    assert members.try_form(1.0, 3) == Formed(("w0",), 3, 0)


def test_the_newest_state_wins_and_old_state_is_of_no_use() -> None:
    members = in_round()
    members.join(1.0, "w0", 6, 1)
    assert members.try_form(1.0, 5) is None  # w1 is still in the round
    members.join(1.0, "w1", 7, 1)
    assert members.try_form(1.0, 5) == Formed(("w0", "w1"), 7, 1)
    members.join(2.0, "w0", 4, 2)
    members.join(2.0, "w1", 4, 2)
    assert members.try_form(2.0, 5) == Formed(("w0", "w1"), -1, -1)  # samples up to 5 count already


def test_a_worker_that_is_to_be_killed_holds_up_the_round() -> None:
    members = in_round()
    for name in ("w0", "w1"):
        members.join(1.0, name, 2, 1)
    members.doom("w1", "hung")
    assert members.try_form(1.0, 2) is None
    assert members.doomed() == (("w1", 1),)
    members.lost(1.1, "w1", "hung", newest_step=2)
    assert members.doomed() == ()
    assert members.try_form(1.1, 2) == Formed(("w0",), 2, 0)


def test_silence_a_long_phase_and_a_start_that_never_ends_count_as_hung() -> None:
    members = in_round()
    members.heard(10.0, "w0", "compute", 1.0)
    assert members.find_hung(15.0) == {}
    assert members.find_hung(15.1) == {"w1": "silent for 15.1 s"}
    for at_s in range(20, 400, 10):
        members.heard(float(at_s), "w0", "compute", at_s - 9.0)
        members.heard(float(at_s), "w1", "exchange", at_s - 9.0)
    assert list(members.find_hung(390.0)) == ["w0"]  # waiting for others is not own work
    members.doom("w0", "hung")
    assert members.find_hung(391.0) == {}
    late = started()
    assert late.find_hung(120.0) == {}
    assert "did not come up" in late.find_hung(120.1)["w0"]


def test_a_pause_of_the_coordinator_is_nobodys_silence() -> None:
    members = in_round()
    members.excuse(100.0)
    assert members.find_hung(115.0) == {}
    assert set(members.find_hung(115.1)) == {"w0", "w1"}


def test_the_same_failure_k_times_is_the_end_and_health_forgets() -> None:
    members = in_round()
    for turn in range(2):
        members.lost(float(turn), "w0", f"no file /tmp/{turn}", newest_step=turn)
        members.start_due(turn + 0.9)
    members.advanced("w0", 21)  # 20 steps after the failure at step 1
    members.lost(3.0, "w0", "no file /tmp/7", newest_step=21)
    assert members.named("given_up") == ()
    members.start_due(4.0)
    for turn in range(2):
        members.lost(5.0 + turn, "w0", f"no file /tmp/{turn}", newest_step=21)
        members.start_due(9.0 + turn)
    assert members.named("given_up") == ("w0",)
    assert members.hopeless() == ""
    for turn in range(3):
        members.lost(20.0 + turn, "w1", "no luck", newest_step=21)
        members.start_due(29.0 + turn)
    assert members.hopeless() == "no luck"


def test_who_comes_back_from_the_store_knows_incarnations_failures_and_orders_to_kill() -> None:
    members = in_round()
    members.lost(1.0, "w1", "boom", newest_step=0)
    members.doom("w0", "hung")
    back = Membership(CONFIG, ("w0", "w1"))
    back.restore(100.0, members.snapshot())
    assert back.current("w0", 1) and back.doomed() == (("w0", 1),)
    assert back.named("active") == ("w0",) and back.named("absent") == ("w1",)
    assert back.start_due(131.0) == ("w1",)  # never later than the longest pause, whatever the clock was
    assert back.current("w1", 2)
    assert len(back["w1"].failures) == 1


@pytest.mark.parametrize("all_dead", [True, False])
def test_numbers_of_who_has_no_place_go_on_when_it_is_added_again(all_dead: bool) -> None:
    members = started()
    members.retire(1.0, "w1", again=False)
    back = Membership(CONFIG.model_copy(update={"workers": 1, "max_workers": 2}), ("w0",))
    back.restore(100.0, members.snapshot(), all_dead)
    assert back.named("removed") == ("w1",)
    assert back.add(101.0, 1) == ("w1",) and "w1" in back.start_due(101.0)
    assert back.current("w1", 2)


@pytest.mark.parametrize("state", ["absent", "given_up"])
def test_nobody_speaks_for_a_worker_that_does_not_run(state: str) -> None:
    members = started()
    for turn in range(3 if state == "given_up" else 1):
        members.lost(float(turn), "w0", "same", newest_step=0)
        if members["w0"].state == "absent" and state == "given_up":
            members.start_due(turn + 0.9)
    assert members["w0"].state == state
    assert not members.current("w0", members["w0"].incarnation)


def test_who_does_not_leave_a_round_that_is_over_is_stuck_unless_it_works() -> None:
    members = in_round()
    members.heard(0.0, "w0", "exchange", 0.0)
    members.heard(0.0, "w1", "compute", 0.0)
    assert members.find_stuck(29.0, round_ended_s=0.0) == {}
    assert list(members.find_stuck(31.0, round_ended_s=0.0)) == ["w0"]
    members.doom("w0", "stuck")
    assert members.find_stuck(31.0, round_ended_s=0.0) == {}
