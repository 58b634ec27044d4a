"""Who is to blame for work that did not get done: failed samples, suspects, the dead (source: ours).

A sample that fails is named by its worker. A lease that is lost with its holder names nobody: one
bad sample may have killed the process, or the machine went away. So all of it becomes suspect;
what was lost too often is halved at each further loss, until the bad sample stands alone and is
given up, and its neighbours are done without it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shoestring.data.ledger_state import LedgerSpec, Letter
from shoestring.data.ranges import Marked, Range, RangeMap, RangeSet

ERROR_CHARACTERS = 2_000


class Blame:
    """Failures of positions that are not done, and the dead.

    Args:
        letters, suspects: as in `Snapshot`.

    Attributes:
        dead: how many samples are given up.
        touched: positions of letters that changed since it was last cleared; None: nobody asks.

    Raises:
        ValueError: suspects overlap.
    """

    def __init__(self, spec: LedgerSpec, letters: Iterable[Letter], suspects: Iterable[Marked]) -> None:
        self._spec = spec
        self._allowed = 1 if spec.delivery == "at_most_once" else spec.max_attempts
        self.letters = {letter.position: msgspec.structs.replace(letter) for letter in letters}
        self.suspects = RangeMap(suspects)
        self.dead = sum(letter.dead for letter in self.letters.values())
        self.touched: set[int] | None = None

    @property
    def too_many(self) -> bool:
        """Whether a larger share is dead than the spec allows."""
        return self.dead > self._spec.max_dead_share * self._spec.total

    def failed(self, position: int, error: str) -> bool:
        """A sample failed by name; returns whether for good."""
        attempts = 1 + (self.letters[position].attempts if position in self.letters else 0)
        return self._write(position, attempts, attempts >= self._allowed, error)

    def lost(self, start: int, stop: int, how: str) -> list[int]:
        """[start, stop) was lost with its holder; returns the positions that are given up for it."""
        given_up: list[int] = []
        for first, last, losses in _pieces(self.suspects.overlap(start, stop), start, stop):
            counted, middle = losses + 1, (first + last) // 2
            if counted < self._allowed:
                self.suspects.put(first, last, counted)
            elif last - first == 1:
                self._write(first, counted, True, how)
                given_up.append(first)
            else:
                self.suspects.put(first, middle, counted)
                self.suspects.put(middle, last, counted)
        return given_up

    def next_alone(self, position: int) -> Range | None:
        """The first range from `position` on that is to be handed out alone."""
        for start, stop, losses in self.suspects.following(position):
            if losses >= self._allowed:
                return start, stop
        return None

    def is_alone(self, position: int) -> bool:
        """Whether this position is to be handed out with nothing but its range of suspects."""
        found = self.next_alone(position)
        return found is not None and found[0] <= position

    def absolve(self, ranges: list[Range]) -> None:
        """These positions are done: what they were blamed for is forgotten."""
        if len(self.suspects):
            for start, stop in ranges:
                self.suspects.clear(start, stop)
        if len(self.letters) == self.dead:
            return
        within = RangeSet(ranges)
        for position in [p for p, letter in self.letters.items() if p in within and not letter.dead]:
            del self.letters[position]
            self._touch(position)

    def _write(self, position: int, attempts: int, dead: bool, error: str) -> bool:
        self.letters[position] = Letter(position, attempts, dead, error[:ERROR_CHARACTERS])
        self._touch(position)
        if dead:
            self.suspects.clear(position, position + 1)
            self.dead += 1
        return dead

    def _touch(self, position: int) -> None:
        if self.touched is not None:
            self.touched.add(position)


def _pieces(marked: list[Marked], start: int, stop: int) -> list[Marked]:
    """[start, stop) in pieces: the marked ones, and what is between them with 0."""
    pieces = []
    for first, last, number in marked:
        if start < first:
            pieces.append((start, first, 0))
        pieces.append((first, last, number))
        start = last
    return [*pieces, (start, stop, 0)] if start < stop else pieces
