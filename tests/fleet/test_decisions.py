"""The small pure functions: restarts, pace, drills."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.fleet import drill, pace
from shoestring.fleet.config import CheckpointConfig, DrillConfig, MemberConfig, PaceConfig
from shoestring.fleet.restarts import Failure, decide, signature

CONFIG = MemberConfig(backoff_s=0.1, backoff_max_s=1.0, same_failures=3)


def failures(*errors: str) -> tuple[Failure, ...]:
    return tuple(Failure(float(i), error, signature(error)) for i, error in enumerate(errors))


def test_pauses_double_up_to_their_bound() -> None:
    errors = ["a", "b", "c", "d", "e", "f"]
    pauses = [decide(10.0, failures(*errors[: n + 1]), CONFIG).at_s for n in range(6)]
    assert pauses == pytest.approx([10.1, 10.2, 10.4, 10.8, 11.0, 11.0])


def test_numbers_and_addresses_do_not_make_errors_different() -> None:
    given_up = decide(
        0.0, failures("at 0xdeadbeef line 3", "x\nat 0x12 line 4", "at 0x0 line 55\n\n"), CONFIG
    )
    assert given_up.at_s is None and "3 times" in given_up.reason
    assert decide(0.0, failures("a", "b", "a"), CONFIG).at_s is not None
    assert decide(0.0, failures("a", "a"), CONFIG).at_s is not None
    assert signature(" \n ") == "no error text"
    advice = "Traceback\nDataError: no file 7\n  what to do: give one\n"
    assert signature(advice) == "DataError: no file #"


def test_progress_is_the_nearest_bound() -> None:
    both = PaceConfig(steps=100, budget_s=50.0)
    assert pace.progress(10, 20.0, 0.9, both) == pytest.approx(0.4)
    assert pace.progress(90, 20.0, 0.0, both) == pytest.approx(0.9)
    assert pace.progress(500, 20.0, 0.0, both) == 1.0
    assert pace.progress(7, 1e9, 0.25, PaceConfig()) == 0.25


def test_the_batch_grows_to_its_size() -> None:
    config = PaceConfig(batch=100, batch_start=20, batch_warmup=0.5)
    assert [pace.batch_at(share, config) for share in (0.0, 0.25, 0.5, 1.0)] == [20, 60, 100, 100]
    assert pace.batch_at(0.0, PaceConfig(batch=100)) == 100
    assert pace.batch_at(0.0, PaceConfig(batch=100, batch_start=20)) == 100


@given(st.floats(0, 1), st.integers(1, 50), st.integers(1, 50), st.floats(0, 1))
def test_a_batch_is_never_empty(share: float, start: int, batch: int, warmup: float) -> None:
    size = pace.batch_at(share, PaceConfig(batch=batch, batch_start=start, batch_warmup=warmup))
    assert min(start, batch) <= size <= max(start, batch)


def test_the_rest_at_the_speed_so_far() -> None:
    assert pace.remaining_s(0.0, 10.0) == 0.0
    assert pace.remaining_s(0.25, 10.0) == pytest.approx(30.0)


def test_a_checkpoint_is_due_after_steps_or_time_but_never_twice() -> None:
    config = CheckpointConfig(every_s=60.0, every_steps=10)
    assert pace.checkpoint_due(10, 0.0, 10, -1e9, config) == ""
    assert "10 steps" in pace.checkpoint_due(20, 0.0, 10, 0.0, config)
    assert "61 s" in pace.checkpoint_due(11, 61.0, 10, 0.0, config)
    assert pace.checkpoint_due(19, 59.0, 10, 0.0, config) == ""
    assert pace.checkpoint_due(99, 1e9, 10, 0.0, CheckpointConfig(every_s=0.0)) == ""


def test_a_drill_happens_once_and_only_to_who_is_there() -> None:
    config = DrillConfig(kill="w1", at_progress=0.5)
    name, reason = drill.due(0.5, ("w0", "w1"), False, config)
    assert name == "w1" and "50%" in reason
    assert drill.due(0.4, ("w0", "w1"), False, config) == ("", "")
    assert drill.due(0.5, ("w0", "w1"), True, config) == ("", "")
    assert drill.due(0.5, ("w0",), False, config) == ("", "")
    assert drill.due(0.9, ("w0", "w1"), False, DrillConfig()) == ("", "")
