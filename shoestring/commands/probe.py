"""`shoestring probe`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click
import msgspec
from rich.console import Console
from rich.table import Table

from shoestring.base.clock import SystemClock
from shoestring.base.errors import ConfigError
from shoestring.base.units import format_bytes, format_count, format_duration
from shoestring.cluster.topology import save_cluster
from shoestring.commands.common import print_json
from shoestring.jobs.probe import Findings, ProbeOptions, to_cluster
from shoestring.jobs.probe import probe as run_probe
from shoestring.jobs.probe.meter import LinkRate
from shoestring.report.heatmap import HeatMap, TableView, write_heatmap

WORKER_COLUMNS = ("worker", "device", "memory", "fp32 alone", "fp32 all", "bf16 alone", "bf16 all")
WORKERS = "GFLOP/s, each worker alone on its host and all at once"


def probe(
    workers: int, transport: Literal["local", "ray"], seconds: float, output: Path, page: Path, as_json: bool
) -> int:
    """Measure the machines at hand; write the cluster file and the page; returns the exit code."""
    _check_places(output, page)
    clock = SystemClock()
    found = run_probe(
        ProbeOptions(workers, transport, seconds, output.parent), clock, lambda text: _say(text, as_json)
    )
    cluster = to_cluster(found)
    save_cluster(cluster, output)
    write_heatmap(page, heat_map(found))
    if as_json:
        files = {"output": str(output), "page": str(page)}
        print_json(files | {"cluster": cluster.model_dump(), "findings": msgspec.to_builtins(found)})
        return 0
    _print(found, Console())
    click.echo(f"cluster: {output}")
    click.echo(f"page:    {page}")
    return 0


def heat_map(found: Findings) -> HeatMap:
    """The findings as the page wants them."""
    facts = [
        ("workers", str(len(found.workers))),
        ("groups", str(len(found.groups))),
        ("link inside a group, alone", _link(found.inside)),
        ("link between groups, alone", _link(found.between) if len(found.groups) > 1 else "one group"),
        ("network card", found.card_reason),
        ("measured in", format_duration(found.took_s)),
    ]
    rounds = tuple((str(number), reason) for number, reason in enumerate(found.rounds, start=1))
    named = tuple((s.worker, s.reason) for s in found.suspects if s.blame == "suspect")
    checked = tuple((s.worker, s.what, s.blame, s.reason) for s in found.suspects)
    tables = [TableView(f"Workers ({WORKERS})", WORKER_COLUMNS, _worker_rows(found))]
    if checked:
        tables.append(TableView("Paired checks", ("worker", "of", "slow is", "why"), checked))
    tables.append(TableView("Rounds of disjoint pairs", ("round", "what and why"), rounds))
    return HeatMap(
        title="What this cluster is",
        lead=f"{found.groups_reason}.",
        names=tuple(worker.name for worker in found.workers),
        groups=found.groups,
        links={(p.one, p.other): (p.link.bytes_per_s, p.link.latency_s) for p in found.pairs},
        suspects=named,
        facts=tuple(facts),
        tables=tuple(tables),
    )


def _check_places(output: Path, page: Path) -> None:
    """Before minutes are spent on what could not be written."""
    for path in (output, page):
        if path.is_dir() or not path.parent.is_dir():
            wrong = "is a directory" if path.is_dir() else "is in a directory that does not exist"
            raise ConfigError(f"{path} {wrong}", "give the name of a file in a directory that exists")


def _say(text: str, as_json: bool) -> None:
    if not as_json:
        click.echo(f"  {text}", err=True)


def _print(found: Findings, console: Console) -> None:
    table = Table(*WORKER_COLUMNS, "group", caption=WORKERS, caption_justify="left")
    home = {seat: number for number, group in enumerate(found.groups) for seat in group}
    for seat, row in enumerate(_worker_rows(found)):
        table.add_row(*row, str(home[seat]))
    console.print(table)
    links = Table("link", "each way", "latency", "card")
    card = "shared by the workers of a node" if found.card_shared else "not shared"
    links.add_row(*_link_row("inside a group", found.inside), "")
    if len(found.groups) > 1:
        links.add_row(*_link_row("between groups", found.between), card)
    console.print(links)
    console.print(found.groups_reason, highlight=False)
    console.print(found.card_reason, highlight=False)
    for suspect in found.suspects:
        style = "bold red" if suspect.blame == "suspect" else "yellow"
        console.print(f"[{style}]{suspect.worker}[/]: {suspect.reason}", highlight=False)


def _worker_rows(found: Findings) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            worker.name,
            worker.facts.device,
            format_bytes(worker.facts.memory_bytes),
            *(_rate(rates, dtype) for dtype in ("fp32", "bf16") for rates in (worker.alone, worker.together)),
        )
        for worker in found.workers
    )


def _rate(rates: Mapping[str, float], dtype: str) -> str:
    return format_count(rates[dtype] / 1e9)


def _link(link: LinkRate) -> str:
    return f"{format_bytes(link.bytes_per_s)}/s, {format_duration(link.latency_s)}"


def _link_row(name: str, link: LinkRate) -> tuple[str, str, str]:
    return name, f"{format_bytes(link.bytes_per_s)}/s", format_duration(link.latency_s)
