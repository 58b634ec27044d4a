"""A worker's part of a step: in passes, without what cannot be read, and what is left when it stops."""

from __future__ import annotations

from typing import Any

import numpy as np

from shoestring.base.errors import SampleError
from shoestring.fleet.messages import Order
from shoestring.train.passes import Passes
from shoestring.train.task import SampleIds

RANGES = ((10, 13), (20, 24), (24, 26))
BAD = {1020, 1021, 1022}


def load(ids: SampleIds) -> Any:
    bad = {int(i): "poison" for i in ids if int(i) in BAD}
    if bad:
        raise SampleError(bad)
    return list(map(int, ids))


def passes(size: int, ranges: tuple[tuple[int, int], ...] = RANGES) -> Passes:
    order = Order(1, ranges, 9, 0.0)
    return Passes(order, size, lambda start, length: np.arange(start, start + length) + 1000, load)


def test_what_cannot_be_read_is_left_out_and_named_by_its_position() -> None:
    part = passes(4)
    assert [batch for _, batch in part] == [[1010, 1011, 1012], [1023, 1024], [1025]]
    assert part.failures == dict.fromkeys((20, 21, 22), "poison") and part.begun == 3


def test_a_pass_of_which_nothing_can_be_read_is_begun_all_the_same() -> None:
    part = passes(3)
    assert [batch for _, batch in part] == [[1010, 1011, 1012], [1023, 1024, 1025]]
    assert part.begun == 3 and set(part.failures) == {20, 21, 22}


def test_what_is_left_after_some_passes() -> None:
    part = passes(4)
    assert part.after(0) == ((10, 13), (20, 26))
    assert part.after(1) == ((21, 26),)
    assert part.after(2) == ((25, 26),)
    assert part.after(3) == () == passes(4, ()).after(0)
    assert [part.count_of(n) for n in range(5)] == [0, 4, 8, 9, 9]
