"""The letters of sharded training, who holds which shard, and what a lost rank leaves behind.

A strategy is three letters for (parameters, gradients, optimizer states): N kept whole on each rank, I
sharded inside the fast group, G sharded over all ranks (source: PaRO, arXiv 2310.06003). The nesting of
shards and the algebra of recovery are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from shoestring.base.errors import ConfigError

Letter = Literal["N", "I", "G"]
Source = Literal["whole", "masters", "lost"]
LETTERS: tuple[Letter, ...] = ("N", "I", "G")
COARSENESS: Mapping[str, int] = MappingProxyType({"N": 0, "I": 1, "G": 2})
BUILT = ("NNN", "NNG", "NGG", "GGG", "NII", "III", "NIG", "IIG", "IGG", "ING")


@dataclass(frozen=True)
class Strategy:
    """Three letters.

    Attributes:
        parameters: of the working parameters, in the compute dtype.
        gradients: of the accumulated gradients.
        states: of fp32 masters and optimizer moments.
    """

    parameters: Letter
    gradients: Letter
    states: Letter

    @property
    def name(self) -> str:
        """Such as `IIG`."""
        return self.parameters + self.gradients + self.states

    @property
    def needs_groups(self) -> bool:
        """Whether some letter is I."""
        return "I" in self.name

    @property
    def dominated(self) -> str:
        """Why this strategy is never worth building, or "": states coarser than what is updated by them.

        A rank that holds coarser states than gradients would need gradients that it has given away; one that
        holds coarser states than parameters keeps 12 bytes where keeping 2 would have done (source: PaRO).
        """
        states = COARSENESS[self.states]
        if states < COARSENESS[self.gradients]:
            return "states are kept coarser than gradients: the update needs gradients that were given away"
        if states < COARSENESS[self.parameters]:
            return "states are kept coarser than parameters: 12 bytes stay where 2 were saved"
        return ""


def parse_strategy(name: str) -> Strategy:
    """`IIG` -> Strategy.

    Raises:
        ConfigError: not three letters of N, I and G.
    """
    letters = name.upper()
    if len(letters) != 3 or any(letter not in LETTERS for letter in letters):
        raise ConfigError(
            f"{name!r} is no strategy: three letters of N, I and G for parameters, gradients and states",
            f"take `auto`, or one of {', '.join(BUILT)}",
        )
    return Strategy(letters[0], letters[1], letters[2])  # type: ignore[arg-type]


def all_strategies() -> tuple[Strategy, ...]:
    """All 27, N before I before G."""
    return tuple(Strategy(p, g, o) for p in LETTERS for g in LETTERS for o in LETTERS)


@dataclass(frozen=True)
class Layout:
    """Ranks in groups of one size, fast inside and slow between.

    Attributes:
        groups: ranks of each group; local position j of a group is the peer of position j of all others.
    """

    groups: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(group) for group in self.groups}
        ranks = sorted(rank for group in self.groups for rank in group)
        if len(sizes) != 1 or not ranks or ranks != list(range(len(ranks))):
            raise ConfigError(
                f"groups of {[len(group) for group in self.groups]} ranks cannot be used as equal groups",
                "take groups of one size that hold each rank once, or a strategy without I",
            )

    @property
    def size(self) -> int:
        """n: all ranks."""
        return self.count * self.group_size

    @property
    def count(self) -> int:
        """g: groups."""
        return len(self.groups)

    @property
    def group_size(self) -> int:
        """m: ranks of a group."""
        return len(self.groups[0])

    def locate(self, rank: int) -> tuple[int, int]:
        """(group a in [0, g), local position b in [0, m)) of a rank."""
        for number, group in enumerate(self.groups):
            if rank in group:
                return number, group.index(rank)
        raise ConfigError(f"rank {rank} is in no group", "name each rank in one group")

    def parts(self, letter: str) -> int:
        """d: into how many shards this letter cuts (1, m or n)."""
        return {"N": 1, "I": self.group_size, "G": self.size}[letter]

    def shard(self, letter: str, rank: int) -> tuple[int, int]:
        """(index, d): which of the d equal shards this rank holds.

        Shards nest: shard b of m is cut into g, so that rank (a, b) holds number b g + a of n. Going from I
        to G is then an exchange between peers alone.
        """
        group, local = self.locate(rank)
        index = {"N": 0, "I": local, "G": local * self.count + group}[letter]
        return index, self.parts(letter)


def equal_groups(ranks: int, group_size: int) -> Layout:
    """Consecutive ranks, `group_size` to a group.

    Raises:
        ConfigError: the size does not divide the ranks.
    """
    if group_size < 1 or ranks % group_size:
        divisors = [size for size in range(1, ranks + 1) if ranks % size == 0]
        raise ConfigError(
            f"groups of {group_size} do not divide {ranks} ranks",
            f"take a group size of {', '.join(map(str, divisors))}",
        )
    return Layout(tuple(tuple(range(first, first + group_size)) for first in range(0, ranks, group_size)))


def layout_of(labels: Sequence[str]) -> Layout | None:
    """Ranks whose labels are equal make a group, in order of appearance; None where sizes differ."""
    members: dict[str, list[int]] = {}
    for rank, label in enumerate(labels):
        members.setdefault(label, []).append(rank)
    if len({len(group) for group in members.values()}) != 1:
        return None
    return Layout(tuple(tuple(group) for group in members.values()))


def fitted(strategy: Strategy, labels: Sequence[str]) -> tuple[Strategy, Layout]:
    """Strategy and layout for the ranks that are there: by groups of one size, or over all ranks where there
    are none.

    Groups of unequal size (a rank is lost, and not back yet) cannot share out a group's shards equally. What
    was sharded inside the group is sharded over all ranks then: slower, but it fits wherever the rest did.

    Args:
        labels: each rank's group.
    """
    layout = layout_of(labels)
    if layout is not None:
        return strategy, layout
    letters = strategy.name.replace("I", "G")
    return parse_strategy(letters), Layout((tuple(range(len(labels))),))


@dataclass(frozen=True)
class Leftover:
    """What the ranks that live still hold together.

    Attributes:
        parameters, states: shares of the model in [0, 1] that some living rank holds at the wanted step.
        masters_from_parameters: share of the model whose fp32 masters can be had only from parameters.
        complete: parameters and states are all there: nothing needs the disk.
        usable: all masters can be had from living ranks, exactly or from parameters; moments may be missing.
    """

    parameters: float
    states: float
    masters_from_parameters: float
    complete: bool
    usable: bool


def leftover(strategy: Strategy, layout: Layout, alive: Sequence[int], synced: Sequence[int]) -> Leftover:
    """What is left once only `alive` ranks remain of a layout in which all held their shards.

    Args:
        alive: ranks whose states are of the wanted step.
        synced: those of them whose parameters are of that step too (an exchange after an update may have
            broken).
    """
    cells = layout.size
    states = _cells(strategy.states, layout, alive)
    parameters = _cells(strategy.parameters, layout, synced)
    bridged = parameters - states
    return Leftover(
        parameters=len(parameters) / cells,
        states=len(states) / cells,
        masters_from_parameters=len(bridged) / cells,
        complete=len(states) == cells,
        usable=len(states | parameters) == cells,
    )


def _cells(letter: str, layout: Layout, ranks: Sequence[int]) -> set[int]:
    """Numbers of the n finest shards that these ranks hold together."""
    held: set[int] = set()
    for rank in ranks:
        index, parts = layout.shard(letter, rank)
        width = layout.size // parts
        held |= set(range(index * width, (index + 1) * width))
    return held
