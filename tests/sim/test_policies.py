"""Policies in simulated fleets: the shipped ones keep the contract, and broken ones are found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from shoestring.base.errors import ConfigError
from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import AdjustBatch, ControlState, Decision, PolicyOptions
from shoestring.control.policies import POLICIES
from shoestring.sim.conformance import EVEN, UNEVEN, check, measure
from shoestring.sim.contention import Contention, Machines, simulate
from shoestring.sim.policies import sim_policy

SEEN: list[float] = []


@pytest.mark.parametrize("name", POLICIES)
def test_shipped_policies_keep_the_contract(name: str) -> None:
    assert [finding for finding in check(POLICIES[name]) if not finding.holds] == []


def fickle(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    SEEN.append(now)
    return Decision((), f"asked {len(SEEN)} times")


def meddler(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    dict.__setitem__(state.shares, "w0", 0.0)  # type: ignore[arg-type]
    return Decision((), "mine now")


def greedy(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    return Decision((AdjustBatch(dict.fromkeys(state.workers, 1.0)),), "everything for all")


def silent(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    return Decision((), "")


def fragile(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    return Decision((), f"{min(view.last.at_s for view in state.workers.values())}")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (fickle, "two answers"),
        (meddler, "changed the state"),
        (greedy, "sum to 1"),
        (silent, "no reason"),
        (fragile, "raised AttributeError"),
    ],
)
def test_a_broken_policy_is_found_out(policy: Callable[..., Decision], said: str) -> None:
    assert any(said in finding.seen for finding in check(policy) if not finding.holds)


def test_nd_gains_what_the_bound_allows_and_does_not_follow_noise() -> None:
    quality = measure("nd")
    assert quality.speedup > 3.0 and quality.bound == pytest.approx(3.25)
    assert quality.changes == {0.05: 0, 0.1: 0, 0.2: 0}
    assert quality.false_restarts == 0
    assert 300.0 < quality.recovery_s < 360.0  # the long window, a minute at most on top


def test_the_measure_of_oscillation_can_fail() -> None:
    config = ControlConfig(policy="lb-bsp", interval_s=0.0)
    assert len(simulate(EVEN, Contention(noise=0.05), config, 0, 100.0).decisions) > 100


def test_dd_comes_near_the_bound_of_its_programme() -> None:
    machines = Machines(speeds=(100.0, 50.0, 25.0), start_s=0.05, most=16, batch=200)
    run = simulate(machines, Contention(noise=0.02), ControlConfig(policy="dd"), 0, 300.0)
    late = sorted(run.step_s[-50:])[25]
    # Three times faster than even, less what a pass costs beside its samples.
    assert late < 1.05 * run_bound(machines)


def run_bound(machines: Machines) -> float:
    from shoestring.control.balance import Part, balance

    parts = [Part(machines.start_s, 1 / speed, machines.most) for speed in machines.speeds]
    found = balance(parts, machines.batch)
    return max(part.seconds(samples) for part, samples in zip(parts, found, strict=True))


def test_one_seed_is_one_run() -> None:
    contention = Contention(noise=0.1, burst_every_s=60.0, bad_places=0.3, evicted_every_s=100.0)
    runs = [simulate(UNEVEN, contention, ControlConfig(), seed, 300.0) for seed in (1, 1, 2)]
    assert runs[0].step_s == runs[1].step_s != runs[2].step_s
    assert runs[0].samples == sum(UNEVEN.batch for _ in runs[0].step_s)


def test_the_command_says_what_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim_policy("none", seeds=1, as_json=True) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["sound"] and said["quality"]["speedup"] == pytest.approx(1.0)
    assert sim_policy("tests.sim.test_policies:greedy", seeds=1, as_json=False) == 1
    assert "FAIL usual" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no policy"):
        sim_policy("nobody", seeds=1, as_json=True)
