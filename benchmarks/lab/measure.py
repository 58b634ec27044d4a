"""`python -m benchmarks.lab.measure`: what a lab is asked for and what it gives, for docs/design/lab.md."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

from benchmarks.common import arguments, finish, table
from benchmarks.lab.config import LabConfig
from benchmarks.lab.lab import Lab
from benchmarks.lab.meter import METER_COMMAND
from shoestring.base.clock import SystemClock

Measure = Callable[[Lab], float]
SECONDS_OF_TRAFFIC = 0.6


def meter(lab: Lab, mode: str, amount: float) -> list[dict[str, float]]:
    """What those ranks say that measure."""
    result = lab.run([*METER_COMMAND, mode, str(amount)], timeout_s=60).check()
    return [said for said in map(json.loads, result.outputs) if said]


def mbit(mode: str, size_bytes: int) -> Measure:
    """Payload rate into or out of rank 0, Mbit/s."""

    def measure(lab: Lab) -> float:
        (said,) = meter(lab, mode, size_bytes)
        return said["bytes"] * 8 / said["duration_s"] / 1e6

    return measure


def half_trip_ms(lab: Lab) -> float:
    """One way of a byte, ms."""
    (said,) = meter(lab, "echo", 100)
    return said["median_s"] * 500


def core_share(lab: Lab) -> float:
    """Of a core, that host 0 uses."""
    said = meter(lab, "burn", 1.0)[0]
    return said["cpu_s"] / said["duration_s"]


def counted(lab: Lab) -> float:
    """Bytes that arrived by the counter, by payload."""
    before = lab.counters()[0].received_bytes
    (said,) = meter(lab, "in", 10_000_000)
    return (lab.counters()[0].received_bytes - before) / said["bytes"]


def up_and_down_s(lab: Lab) -> float:
    """To build a lab like this one and end it."""
    clock = SystemClock()
    start_s = clock.now()
    with Lab(lab.config):
        pass
    return clock.now() - start_s


def rate_cases() -> dict[str, tuple[LabConfig, Measure]]:
    """Name of the figure -> lab and measurement."""
    cases: dict[str, tuple[LabConfig, Measure]] = {}
    for rate, megabits in (("10mbit", 10), ("200mbit", 200), ("1gbit", 1000), ("4gbit", 4000)):
        size = round(megabits * 1e6 / 8 * SECONDS_OF_TRAFFIC)
        for mode in ("in", "out"):
            cases[f"inter_{rate}_{mode}"] = (LabConfig(hosts=4, inter=rate), mbit(mode, size // 3))
        cases[f"inter_{rate}_relay"] = (LabConfig(hosts=4, inter=rate, delay_ms=2.0), mbit("in", size // 3))
        cases[f"intra_{rate}"] = (LabConfig(hosts=1, ranks=2, intra=rate), mbit("in", size))
    cases["inter_free"] = (LabConfig(hosts=2), mbit("in", 500_000_000))
    cases["intra_free"] = (LabConfig(hosts=1, ranks=2), mbit("in", 500_000_000))
    cases["relay_free"] = (LabConfig(hosts=2, delay_ms=2.0), mbit("in", 300_000_000))
    return cases


def other_cases() -> dict[str, tuple[LabConfig, Measure]]:
    """Delay, quotas, counters, set-up."""
    cases: dict[str, tuple[LabConfig, Measure]] = {
        f"delay_{delay}": (LabConfig(hosts=2, delay_ms=float(delay)), half_trip_ms)
        for delay in (0, 1, 2, 5, 20)
    }
    for cores in (0.1, 0.25, 0.5):
        cases[f"cpu_{round(100 * cores)}"] = (LabConfig(hosts=1, cpu=(cores,)), core_share)
    cases["counted_shaped"] = (LabConfig(hosts=2, inter="200mbit"), counted)
    cases["counted_free"] = (LabConfig(hosts=2), counted)
    cases["up_and_down_s"] = (LabConfig(hosts=4, inter="200mbit", delay_ms=2.0, cpu=(1.0,)), up_and_down_s)
    return cases


def main(quick: bool) -> None:
    """Each case in a lab of its own, medians."""
    repeats = 1 if quick else 5
    samples: dict[str, list[float]] = {}
    for name, (config, measure) in (rate_cases() | other_cases()).items():
        with Lab(config) as lab:
            samples[name] = [measure(lab) for _ in range(repeats)]
        print(f"{name}: {' '.join(f'{value:.4g}' for value in samples[name])}", file=sys.stderr, flush=True)
    figures = {name: statistics.median(values) for name, values in samples.items()}
    table(["what", "got"], [[name, f"{value:.4g}"] for name, value in figures.items()])
    finish("lab", {"quick": quick, "repeats": repeats, "traffic_s": SECONDS_OF_TRAFFIC}, samples, figures)


if __name__ == "__main__":
    main(arguments("Measures what a lab gives of what it is asked for.").quick)
