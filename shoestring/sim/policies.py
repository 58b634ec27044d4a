"""`shoestring sim --policy NAME`: hold a policy to its contract, and show how it would do (source: ours)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from shoestring.control.controller import policy_named
from shoestring.sim.conformance import Finding, Quality, check, measure


def sim_policy(name: str, seeds: int, as_json: bool) -> int:
    """Check and measure a policy.

    Args:
        name: as for `control.policy`.
        seeds: of the noisy runs.
        as_json: print one JSON object.

    Returns:
        Exit code: 0, or 1 where the policy may not steer a fleet.

    Raises:
        ConfigError: there is no such policy.
    """
    if not as_json and sys.stderr.isatty():
        print(f"{name}: {seeds} seeds, some seconds each ...", file=sys.stderr)
    findings = check(policy_named(name))
    sound = all(finding.holds for finding in findings)
    quality = measure(name, seeds=seeds) if sound else None
    print(_as_json(name, findings, quality) if as_json else _as_text(name, findings, quality))
    return 0 if sound else 1


def _as_json(name: str, findings: list[Finding], quality: Quality | None) -> str:
    measured = asdict(quality) if quality is not None else None
    return json.dumps({
        "policy": name, "sound": quality is not None, "checks": [asdict(one) for one in findings],
        "quality": measured,
    })  # fmt: skip


def _as_text(name: str, findings: list[Finding], quality: Quality | None) -> str:
    width = max(len(finding.what) for finding in findings)
    lines = [f"{'ok  ' if one.holds else 'FAIL'} {one.what:{width}}  {one.seen[:100]}" for one in findings]
    if quality is None:
        return "\n".join([*lines, f"{name} may not steer a fleet: mend what failed first"])
    changes = ", ".join(f"{count} at {noise:.0%} noise" for noise, count in quality.changes.items())
    back = f"{quality.recovery_s:.0f} s" if quality.recovery_s >= 0 else "never"
    return "\n".join([
        *lines,
        f"one of four at a quarter of the speed: {quality.speedup:.2f} times as fast as an even split "
        f"(bound {quality.bound:.2f})",
        f"splits changed by noise alone in 10 minutes, at most: {changes}",
        f"needless restarts in an hour among bursts, over all seeds: {quality.false_restarts}",
        f"a machine turns four times slower: back at nine tenths of full speed after: {back}",
    ])  # fmt: skip
