"""Shards go from layout to layout by way of the ranks that live; only what nobody has comes from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout, equal_groups, parse_strategy
from shoestring.parallel import paro, tensorfiles
from shoestring.parallel.paro.moves import cut_shard
from shoestring.parallel.paro.pieces import PieceTensor
from shoestring.parallel.paro.recut import Holding, Recut, recut
from tests.parallel.paro import saved, toys
from tests.parallel.paro.ranks import TWO_BY_TWO, in_ranks, join, mean_over_ranks, rings

TOLERANCE = 1e-5
THREE = equal_groups(3, 3)
WAYS = [("NNN", "GGG"), ("GGG", "NNN"), ("NII", "IIG"), ("IIG", "NII"), ("IGG", "NNG"), ("ING", "III")]
WAYS += [("NGG", "IIG"), ("NIG", "GGG"), ("III", "NNN"), ("NNG", "NIG")]


def held(strategy: str, layout: Layout, ranks: list[int | None], synced: bool = True) -> list[Holding | None]:
    """What ranks of the new layout bring: the shards of these ranks of the old one."""
    return [None if r is None else Holding(parse_strategy(strategy), layout, r, synced) for r in ranks]


def test_to_other_letters_and_groups(tmp_path: Path) -> None:
    wanted, _ = toys.alone(saved.mixed, 4, 5)
    other = Layout(((3, 0), (1, 2)))

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank, "old") as old, rings(other, rank, "new") as new:
            for before, after in WAYS:
                model, optimizer = toys.sharded(saved.mixed, before, old)
                losses = toys.train(model, optimizer, rank, range(3))
                saved.save(optimizer, tmp_path / f"{before}-before")
                done = recut(optimizer, parse_strategy(after), new, held(before, TWO_BY_TWO, [0, 1, 2, 3]))
                assert not done.missing and not done.rounded_bytes
                optimizer.engine.publish()
                saved.save(optimizer, tmp_path / f"{before}-after")
                losses += toys.train(model, optimizer, rank, range(3, 5))
                assert toys.worst(mean_over_ranks(losses), wanted) < TOLERANCE, (before, after)

    in_ranks(4, tmp_path, body)
    for before, _ in WAYS:
        saved.check_equal(tmp_path / f"{before}-after", tmp_path / f"{before}-before")


def test_ranks_without_a_single_trained_element(tmp_path: Path) -> None:
    """A gain of one element is with one rank of four; the others know the names of its state all the same."""

    def build() -> nn.Module:
        model = saved.mixed()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name == "gain")
        return model

    wanted, _ = toys.alone(build, 4, 4)

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for before, after in (("GGG", "NII"), ("NII", "GGG"), ("IIG", "NNN")):
                model, optimizer = toys.sharded(build, before, exchange)
                losses = toys.train(model, optimizer, rank, range(2))
                recut(optimizer, parse_strategy(after), exchange, held(before, TWO_BY_TWO, [0, 1, 2, 3]))
                optimizer.engine.publish()
                losses += toys.train(model, optimizer, rank, range(2, 4))
                assert toys.worst(mean_over_ranks(losses), wanted) < TOLERANCE, (before, after)

    in_ranks(4, tmp_path, body)


def lose(
    rank: int, strategy: str, after: str, lost: int, folder: Path
) -> tuple[Recut, paro.ShardedOptimizer] | None:
    """Four ranks train, one goes, three cut the state anew; None on the one that went."""
    with rings(TWO_BY_TWO, rank, "four") as exchange:
        model, optimizer = toys.sharded(saved.mixed, strategy, exchange)
        toys.train(model, optimizer, rank, range(3))
        optimizer.engine.settle_parameters()
        saved.save(optimizer, folder / "before")
    dist.destroy_process_group()
    if rank == lost:
        join(0, 1, folder, "gone")
        return None
    left = [r for r in range(4) if r != lost]
    join(left.index(rank), 3, folder, "three")
    with rings(THREE, left.index(rank)) as exchange:
        done = recut(optimizer, parse_strategy(after), exchange, held(strategy, TWO_BY_TWO, list(left)))
        if done.missing:
            tensorfiles.read(done.missing, folder / "before")
        optimizer.engine.publish()
        optimizer.engine.settle_parameters()
        saved.save(optimizer, folder / "after")
        saved.check_losses(toys.train(model, optimizer, 0, saved.AFTER), folder / "before")
    return done, optimizer


@pytest.mark.parametrize("after", ["NII", "NGG"])
def test_a_lost_rank_whose_shards_the_other_group_has(after: str, tmp_path: Path) -> None:
    def body(rank: int) -> None:
        outcome = lose(rank, "NII", after, 1, tmp_path)
        if outcome is not None:
            done, optimizer = outcome
            assert not done.missing and not done.rounded_bytes
            wanted = [
                cut_shard(flat.numel, flat.padded, THREE, after[2], optimizer.engine.exchange.rank)
                for flat in optimizer.engine.flats
                if flat.trainable
            ]
            assert done.own_bytes + done.peer_bytes == sum(12 * (stop - start) for start, stop in wanted)

    in_ranks(4, tmp_path, body)
    saved.check_equal(tmp_path / "after", tmp_path / "before")


@pytest.mark.parametrize("lost", [0, 3])
def test_a_lost_rank_whose_masters_are_in_the_parameters(lost: int, tmp_path: Path) -> None:
    """Under IIG the moments of one cell of four are gone, and nothing else; they come from the disk."""
    cell = TWO_BY_TWO.shard("G", lost)[0]

    def body(rank: int) -> None:
        outcome = lose(rank, "IIG", "GGG", lost, tmp_path)
        if outcome is None:
            return
        done, optimizer = outcome
        gone, found = set(), set()
        for flat in optimizer.engine.flats:
            width = -(-flat.numel // 64) * 16  # of a cell in the layout that is over
            for entry in flat.entries if flat.trainable else ():
                low = max(cell * width, entry.offset) - entry.offset
                high = min((cell + 1) * width, entry.end) - entry.offset
                keys = ("exp_avg", "exp_avg_sq")
                gone |= {(f"optim.state.{entry.name}.{key}", i) for key in keys for i in range(low, high)}
        for name, piece in done.missing.items():
            assert isinstance(piece, PieceTensor)
            found |= {(name, piece.start + i) for i in range(piece.local.numel())}
        assert found <= gone
        counts = torch.tensor([len(found), done.rounded_bytes])
        dist.all_reduce(counts)  # no two ranks miss the same, as GGG cuts without overlap
        assert counts.tolist() == [len(gone), len(gone) // 2 * 4]

    in_ranks(4, tmp_path, body)
    saved.check_equal(tmp_path / "after", tmp_path / "before")


@pytest.mark.parametrize(("before", "after"), [("GGG", "IIG"), ("NGG", "NII"), ("NNG", "GGG")])
def test_a_newcomer_gets_its_share_from_the_others(before: str, after: str, tmp_path: Path) -> None:
    def body(rank: int) -> None:
        dist.destroy_process_group()
        if rank == 1:
            model, optimizer = toys.sharded(saved.mixed, before, toys.Nobody(THREE, 0))
            with torch.no_grad():
                for flat in optimizer.engine.flats:
                    flat.masters.fill_(7.0)  # nothing that it has may be used
                    flat.parameters.fill_(7.0)
            ranks: list[int | None] = [0, None, 1, 2]
        else:
            number = [0, 2, 3].index(rank)
            join(number, 3, tmp_path, "three")
            with rings(THREE, number) as exchange:
                model, optimizer = toys.sharded(saved.mixed, before, exchange)
                toys.train(model, optimizer, number, range(3))
                optimizer.engine.settle_parameters()
                saved.save(optimizer, tmp_path / "before")
            dist.destroy_process_group()
            ranks = [0, None, 1, 2]
        join(rank, 4, tmp_path, "four")
        with rings(TWO_BY_TWO, rank) as exchange:
            done = recut(optimizer, parse_strategy(after), exchange, held(before, THREE, ranks))
            assert not done.missing and (done.own_bytes == 0) == (rank == 1)
            optimizer.engine.publish()
            saved.save(optimizer, tmp_path / "after")
            saved.check_losses(toys.train(model, optimizer, 0, saved.AFTER), tmp_path / "before")

    in_ranks(4, tmp_path, body)
    saved.check_equal(tmp_path / "after", tmp_path / "before")


def test_what_nobody_has_is_said(tmp_path: Path) -> None:
    """Parameters that may be of another step do not count."""

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            _, optimizer = toys.sharded(toys.tied, "IIG", exchange)
            brought = held("IIG", TWO_BY_TWO, [0, 1, 2, None], synced=False)
            with pytest.raises(ConfigError, match="are with nobody"):
                recut(optimizer, parse_strategy("IIG"), exchange, brought)

    in_ranks(4, tmp_path, body)
