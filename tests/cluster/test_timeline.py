"""Steps short enough to be worked out by hand."""

from __future__ import annotations

import pytest

from shoestring.cluster.timeline import Move, UnitMoves, step_time_s

NOTHING = UnitMoves(0.0, (), (), (), ())


def unit(
    compute_s: float = 0.0,
    gather_s: float = 0.0,
    scatter_s: float = 0.0,
    sync_s: float = 0.0,
    back_s: float = 0.0,
    busy_s: float = 0.0,
) -> UnitMoves:
    """Gathers and scatters inside the group, the exchange once a step between peers."""
    return UnitMoves(
        compute_s,
        (Move("group", gather_s, busy_s),) if gather_s else (),
        (Move("group", scatter_s, busy_s),) if scatter_s else (),
        (Move("peers", sync_s, busy_s),) if sync_s else (),
        (Move("peers", back_s, busy_s),) if back_s else (),
    )


def test_alone_a_step_is_its_compute() -> None:
    assert step_time_s(unit(1.0), unit(3.0), 4, 5) == pytest.approx(5 * 13.0)
    assert step_time_s(unit(1.0), NOTHING, 0, 2) == pytest.approx(2.0)


def test_with_compute_for_free_collectives_queue() -> None:
    # A root once, each layer twice but the last, which backward begins with.
    assert step_time_s(unit(gather_s=1.0), unit(gather_s=2.0), 3, 4) == pytest.approx(4 * (1 + 5 * 2))
    # Gradients of the group queue behind its gathers.
    both = step_time_s(NOTHING, unit(gather_s=2.0, scatter_s=1.0), 3, 1)
    assert both == pytest.approx(5 * 2 + 3 * 1)


def test_under_compute_only_the_first_gather_and_the_last_scatter_show() -> None:
    layers, compute_s = 4, 30.0
    shown = step_time_s(NOTHING, unit(compute_s, gather_s=1.0), layers, 1)
    assert shown == pytest.approx(layers * compute_s + 1.0)
    shown = step_time_s(NOTHING, unit(compute_s, scatter_s=1.0), layers, 1)
    assert shown == pytest.approx(layers * compute_s + 1.0)
    # Those of the first micro-step travel on under the second.
    shown = step_time_s(NOTHING, unit(compute_s, scatter_s=1.0), layers, 2)
    assert shown == pytest.approx(2 * layers * compute_s + 1.0)


def test_without_prefetch_every_gather_shows() -> None:
    layers, compute_s = 4, 30.0
    shown = step_time_s(NOTHING, unit(compute_s, gather_s=1.0), layers, 2, prefetch=False)
    assert shown == pytest.approx(2 * (layers * compute_s + 2 * layers - 1))


def test_the_exchange_between_groups_hides_under_the_last_backward() -> None:
    layers, compute_s = 4, 30.0
    hidden = step_time_s(NOTHING, unit(compute_s, sync_s=1.0), layers, 3)
    assert hidden == pytest.approx(3 * layers * compute_s + 1.0)
    # One that is slower than backward shows, less the compute that it began under.
    slow = step_time_s(NOTHING, unit(compute_s, sync_s=100.0), layers, 1)
    assert slow == pytest.approx(layers * compute_s / 3 + compute_s * 2 / 3 + layers * 100.0)


def test_updated_parameters_arrive_under_the_first_forward() -> None:
    layers, compute_s = 4, 30.0
    shown = step_time_s(NOTHING, unit(compute_s, back_s=1.0), layers, 2)
    assert shown == pytest.approx(2 * layers * compute_s + 1.0)
    shown = step_time_s(NOTHING, unit(compute_s, back_s=100.0), layers, 1)
    assert shown == pytest.approx(layers * 100.0 + compute_s / 3 + layers * compute_s * 2 / 3)


def test_core_time_of_collectives_lengthens_compute_beside_them_and_not_waiting() -> None:
    layers, compute_s = 4, 30.0
    calm = step_time_s(NOTHING, unit(compute_s, scatter_s=1.0), layers, 1)
    busy = step_time_s(NOTHING, unit(compute_s, scatter_s=1.0, busy_s=0.5), layers, 1)
    assert busy == pytest.approx(calm + 0.5 * (layers - 1))  # the last one leaves after all compute
    waiting = step_time_s(NOTHING, unit(compute_s, gather_s=100.0, busy_s=0.5), layers, 1)
    free = step_time_s(NOTHING, unit(compute_s, gather_s=100.0), layers, 1)
    assert waiting == pytest.approx(free + 0.5, abs=0.51)


def test_many_micro_steps_go_on_like_the_second() -> None:
    layer = unit(3.0, gather_s=2.0, scatter_s=1.5, sync_s=7.0, back_s=4.0, busy_s=0.1)
    times = [step_time_s(unit(1.0, gather_s=1.0), layer, 5, s) for s in (3, 4, 10)]
    assert times[2] - times[1] == pytest.approx(6 * (times[1] - times[0]))
