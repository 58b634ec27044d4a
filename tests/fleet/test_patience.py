"""Rounds that get nowhere form ever later."""

from shoestring.fleet.patience import FREE, MOST_S, pause_s


def test_a_few_are_free_then_pauses_double_up_to_a_bound() -> None:
    assert [pause_s(count) for count in range(FREE + 1)] == [0.0] * (FREE + 1)
    pauses = [pause_s(count) for count in range(FREE + 1, FREE + 60)]
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_S
