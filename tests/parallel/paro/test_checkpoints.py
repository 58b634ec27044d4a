"""A state that was written under one strategy and layout is read under any other, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shoestring.base.errors import CheckpointError
from shoestring.cluster.strategies import BUILT, equal_groups
from shoestring.parallel.paro.exchange import Alone
from tests.parallel.paro import saved, toys
from tests.parallel.paro.ranks import TWO_BY_TWO, in_ranks, rings

SOURCES = ("NNN", "NII", "IIG", "GGG")
FEW = ("NNN", "NGG", "III", "IIG", "GGG")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each source, with what 4 ranks in 2 groups hold after 3 steps; losses of the next two."""
    folder = tmp_path_factory.mktemp("written")

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for source in SOURCES:
                model, optimizer = toys.sharded(saved.mixed, source, exchange)
                assert isinstance(model, saved.Mixed)
                toys.train(model, optimizer, 0, range(3))
                model.shift.copy_(torch.arange(12.0) / 50)
                saved.save(optimizer, folder / source)
                losses = toys.train(model, optimizer, 0, range(3, 5))
                (folder / f"{source}-{rank}.json").write_text(json.dumps(losses))

    in_ranks(4, folder, body)
    return folder


@pytest.mark.parametrize(
    ("size", "group", "targets"), [(4, 2, BUILT), (4, 4, FEW), (3, 3, FEW), (2, 1, FEW)], ids=str
)
def test_it_loads_under_every_other(
    size: int, group: int, targets: tuple[str, ...], written: Path, tmp_path: Path
) -> None:
    def body(rank: int) -> None:
        with rings(equal_groups(size, group), rank) as exchange:
            for source in SOURCES if targets == BUILT else SOURCES[1:3]:
                wanted = json.loads((written / f"{source}-0.json").read_text())
                for target in targets:
                    model, optimizer = toys.sharded(saved.mixed, target, exchange)
                    saved.load(optimizer, written / source)
                    if source == "IIG":
                        saved.save(optimizer, tmp_path / source / target)
                    found = toys.train(model, optimizer, 0, range(3, 5))
                    assert toys.worst(found, wanted) < TOLERANCE, (source, target)

    in_ranks(size, tmp_path, body)
    for target in targets:
        saved.check_equal(tmp_path / "IIG" / target, written / "IIG")


def test_strategies_come_to_the_same_state(written: Path) -> None:
    """Up to the order of sums; so equal losses were no accident."""
    states = [saved.contents(written / source) for source in SOURCES]
    for name, wanted in states[0].items():
        for found in states[1:]:
            torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-5)


def test_another_model_s_checkpoint_is_refused(written: Path) -> None:
    _, optimizer = toys.sharded(lambda: toys.Net(width=16), "NNN", Alone())
    with pytest.raises(CheckpointError, match="cannot restore"):
        saved.load(optimizer, written / "IIG")
    _, optimizer = toys.sharded(lambda: toys.Net(layers=3), "NNN", Alone())
    with pytest.raises(CheckpointError, match="cannot restore"):
        saved.load(optimizer, written / "IIG")
