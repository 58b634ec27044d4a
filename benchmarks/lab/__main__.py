"""`python -m benchmarks.lab --hosts 4 --inter 200mbit --delay 2ms -- COMMAND`: a command on test hosts."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.common import table
from benchmarks.lab.config import LabConfig
from benchmarks.lab.lab import Lab, RunResult
from shoestring.base.errors import ShoestringError
from shoestring.base.units import format_bytes, format_duration, parse_duration


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab",
        description="Builds test hosts on this machine, runs COMMAND on each, counts bytes, and cleans up. "
        "Needs root.",
    )
    parser.add_argument("--hosts", type=int, default=2, help="how many (2)")
    parser.add_argument("--ranks", type=int, default=1, help="processes on each host (1)")
    parser.add_argument("--inter", metavar="RATE", help="rate of a host's link, each way, like 200mbit")
    parser.add_argument("--intra", metavar="RATE", help="rate of a host's own loopback, like 4gbit")
    parser.add_argument("--delay", metavar="TIME", default="0", help="one way between hosts, like 2ms")
    parser.add_argument("--cpu", metavar="CORES", default="", help="of each host: one number, or 0.5,1,1,1")
    parser.add_argument("--timeout", metavar="S", type=float, default=600.0, help="end all after it (600)")
    parser.add_argument("--json", metavar="FILE", help="write what was counted; - for stdout")
    parser.add_argument("command", metavar="COMMAND", nargs="+", help="after --")
    return parser.parse_args(words)


def as_json(lab: Lab, result: RunResult) -> dict[str, Any]:
    """What a run gave, without the text that ranks wrote."""
    return {
        "lab": dataclasses.asdict(lab.config),
        "code": result.code,
        "why": result.why,
        "codes": result.codes,
        "duration_s": result.duration_s,
        "hosts": [
            {"host": host.index, "address": host.address, **dataclasses.asdict(result.counters[host.index])}
            for host in lab.hosts
        ],
    }


def show(lab: Lab, result: RunResult) -> None:
    """Counters and exit codes by host."""
    rows = []
    for host in lab.hosts:
        counted = result.counters[host.index]
        first = host.index * lab.config.ranks
        cores = lab.config.cores(host.index)
        rows.append([
            str(host.index),
            host.address,
            "all" if cores is None else f"{cores:g}",
            format_bytes(counted.sent_bytes),
            format_bytes(counted.received_bytes),
            format_bytes(counted.local_bytes),
            ", ".join(map(str, result.codes[first : first + lab.config.ranks])),
        ])  # fmt: skip
    table(["host", "address", "cores", "sent", "received", "local", "codes"], rows)
    print(f"{format_duration(result.duration_s)}{': ' + result.why if result.why else ''}")


def execute(options: argparse.Namespace) -> int:
    """Build, run, show; the exit code of the first rank that failed, as a shell would say it."""
    config = LabConfig(
        hosts=options.hosts,
        ranks=options.ranks,
        inter=options.inter,
        intra=options.intra,
        delay_ms=parse_duration(options.delay) * 1000,
        cpu=tuple(float(word) for word in options.cpu.split(",") if word),
    )
    out = sys.stderr if options.json == "-" else sys.stdout

    def say(rank: int, line: str) -> None:
        print(f"[{rank}] {line}" if config.world > 1 else line, file=out, flush=True)

    with Lab(config) as lab:
        result = lab.run(options.command, options.timeout, on_line=say)
        with contextlib.redirect_stdout(sys.stderr):
            show(lab, result)
        text = json.dumps(as_json(lab, result))
    if options.json == "-":
        print(text)
    elif options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return result.code if result.code >= 0 else 128 - result.code


def main(words: list[str]) -> int:
    """The program; errors are said on stderr."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    try:
        return execute(parse(words))
    except ShoestringError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
