"""The controller: every interval, a policy turns what the monitor sees into shares, with a reason."""

from __future__ import annotations

from typing import Literal

from shoestring.base.config import Config
from shoestring.control.monitor import Monitor
from shoestring.control.policies import Decision, Policy, PolicyOptions, even, fixed, proportional


class ControlConfig(Config):
    """`interval_s` between decisions; lengths of the monitor's windows; which policy, and its options."""

    policy: Literal["proportional", "even", "fixed"] = "proportional"
    interval_s: float = 5.0
    short_window_s: float = 15.0
    long_window_s: float = 300.0
    options: PolicyOptions = PolicyOptions()


def policy_named(name: str) -> Policy:
    """The shipped policy of this name."""
    policies: dict[str, Policy] = {"proportional": proportional, "even": even, "fixed": fixed}
    return policies[name]


class Controller:
    """Holds the current shares and asks the policy when the interval is over."""

    def __init__(self, config: ControlConfig, monitor: Monitor) -> None:
        self._config = config
        self._policy = policy_named(config.policy)
        self._monitor = monitor
        self._shares: dict[str, float] = {}
        self._next_s: float | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Part of the global batch per worker; sums to 1."""
        return dict(self._shares)

    def regroup(self, members: tuple[str, ...]) -> None:
        """A new round: those who stay keep their proportions, newcomers get the mean."""
        known = {w: self._shares[w] for w in members if w in self._shares}
        mean = sum(known.values()) / len(known) if known else 1.0
        raw = {w: known[w] if w in known else mean for w in members}
        total = sum(raw.values())
        self._shares = {w: value / total for w, value in raw.items()}

    def decide(self, now: float) -> Decision | None:
        """A decision when one is due, already in force; None between intervals."""
        if self._next_s is None:
            self._next_s = now + self._config.interval_s
        if now < self._next_s or not self._shares:
            return None
        self._next_s = now + self._config.interval_s
        view = self._monitor.view(now, tuple(self._shares))
        decision = self._policy(now, view, self.shares, self._config.options)
        if decision.shares is not None:
            self._shares = dict(decision.shares)
        return decision
