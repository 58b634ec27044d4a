"""The table by which the members of a round find each other (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoestring.fleet import messages as m

RETRY_S = 0.0025


@dataclass
class Table:
    """Values and counters of one round."""

    values: dict[str, bytes] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)

    def set(self, request: m.KvSet) -> m.Reply:
        """Publish a value."""
        self.values[request.key] = request.value
        return m.Ack()

    def get(self, request: m.KvGet) -> m.Reply:
        """The value, or `Wait` while there is none."""
        return m.Value(self.values[request.key]) if request.key in self.values else m.Wait(RETRY_S)

    def add(self, request: m.KvAdd) -> m.Reply:
        """Add to a counter, once for each `once`."""
        held = int(self.values[request.key]) if request.key in self.values else 0
        if request.once not in self.counted:
            self.counted.add(request.once)
            held += request.amount
            self.values[request.key] = b"%d" % held
        return m.Value(b"%d" % held)
