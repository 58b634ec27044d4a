"""A picture of sharded training on a slow network: what a step computes, and what it sends meanwhile.

`python -m benchmarks.timeline [--strategy IIG] [--quick]`, as root: four ranks on two test hosts train a
Llama of six layers, every rank keeps a trace, and that of the quickest step becomes a picture: the machine is
shared with other work, which would be drawn as well. Figures are computed from the spans of that step. Ranks
share the machine's cores, so traffic costs compute, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import RESULTS, ROOT, finish
from benchmarks.lab import Lab, LabConfig
from benchmarks.peers.common import Setup, adamw, build_model, join, loss_of, micro_batch
from shoestring.base.clock import SystemClock
from shoestring.cluster.strategies import BUILT, equal_groups, parse_strategy
from shoestring.parallel import paro
from shoestring.parallel.paro.over_rings import RingExchange
from shoestring.parallel.paro.trace import TracedExchange, Tracer
from shoestring.report.spans import Span, clipped, overlap, read_spans
from shoestring.report.timeline import write_timeline

INTER, INTRA = "200mbit", "4gbit"
HOSTS, RANKS_PER_HOST = 2, 2
TIMEOUT_S = 120.0
PARTS = ("parameters", "gradients", "states")
WHERE = {"N": "whole on each rank", "I": "cut inside the host", "G": "cut over all ranks"}
SHOWN = (0, RANKS_PER_HOST)  # one rank of each host: the others look alike
TRACED = "traced "  # what the line with a rank's trace begins with


def main() -> None:
    """Run the ranks in a lab and draw; or be one of them."""
    options = _arguments()
    setup = Setup(
        model="llama_tiny" if options.quick else "llama_8m", steps=1 if options.quick else 8, warmup=2,
        accumulation=2, micro_batch=options.samples, length=options.length, ranks_per_host=RANKS_PER_HOST,
    )  # fmt: skip
    if options.rank:
        rank_main(setup, options.strategy)
        return
    if not options.redraw:
        trace(options, setup)
    result = json.loads((RESULTS / f"timeline{'_quick' if options.quick else ''}.json").read_text())
    pictures = options.output or ([] if options.quick else [ROOT / "docs" / "timeline.png"])
    for picture in pictures:
        spans = read_spans(result["samples"]["spans"])
        write_timeline(picture, spans, title_of(result["configuration"]), SHOWN)


def trace(options: argparse.Namespace, setup: Setup) -> None:
    """Let the ranks run in a lab and record the quickest step."""
    config = LabConfig(hosts=HOSTS, ranks=RANKS_PER_HOST, inter=options.inter, intra=options.intra)
    with Lab(config) as lab:
        command = [sys.executable, "-m", "benchmarks.timeline", "--rank", *sys.argv[1:]]
        result = lab.run(command, timeout_s=TIMEOUT_S, cwd=ROOT).check()
    steps = list(zip(*[_traced(output) for output in result.outputs], strict=True))
    traces = [read_spans(row for rows in step for row in rows) for step in steps]
    took_s = [_length_s(trace) for trace in traces]
    spans = traces[took_s.index(min(took_s))]
    figures = asdict(overlap(spans)) | {"step_s": min(took_s)}
    samples = {"steps_s": took_s, "spans": [asdict(span) for span in spans]}
    configuration = {
        "strategy": options.strategy,
        "hosts": HOSTS,
        "inter": options.inter,
        "intra": options.intra,
    }
    finish("timeline", configuration | asdict(setup) | {"quick": options.quick}, samples, figures)


def rank_main(setup: Setup, strategy: str) -> None:
    """Train, and print a line with the trace of each step after `warmup`."""
    rank, size = join()
    layout = equal_groups(size, setup.ranks_per_host)
    clock = SystemClock()
    tracer = Tracer(rank, clock)
    rings = RingExchange(
        layout, rank, timeout_s=TIMEOUT_S, strategy=parse_strategy(strategy), watch=tracer.watch
    )
    exchange = TracedExchange(rings, tracer)
    model = build_model(setup)
    optimizer = paro.shard(
        model, adamw(setup, model.parameters()), strategy, exchange=exchange, dtype=setup.compute_dtype
    )
    optimizer.engine.tracer = tracer
    gc.disable()  # a collection would be a gap in the picture that is not the engine's
    windows = []
    for step in range(setup.warmup + setup.steps):
        start_s = clock.now()
        for micro in range(setup.accumulation):
            optimizer.engine.last = micro == setup.accumulation - 1
            loss = loss_of(model, micro_batch(setup, step, micro, rank))
            (loss / setup.accumulation).backward()
        optimizer.step()
        windows.append((start_s, clock.now()))
    optimizer.engine.settle_parameters()
    # Steps in the middle of training: at their start the update before is still on its way to the peers.
    for window in windows[setup.warmup :]:
        print(TRACED + json.dumps([asdict(one) for one in clipped(tracer.spans(), *window)]), flush=True)
    dist.barrier()
    rings.close()
    dist.destroy_process_group()


def title_of(configuration: Mapping[str, Any]) -> str:
    """What is seen, for people who do not know the letters."""
    letters, hosts = configuration["strategy"], configuration["hosts"]
    kept = ", ".join(f"{what} {WHERE[letter]}" for what, letter in zip(PARTS, letters, strict=True))
    ranks, inter, intra = (configuration[key] for key in ("ranks_per_host", "inter", "intra"))
    return (
        f"One step under {letters} ({kept}): {inter} between {hosts} hosts of {ranks} ranks, {intra} inside"
    )


def _traced(output: str) -> list[list[dict[str, Any]]]:
    return [json.loads(line.removeprefix(TRACED)) for line in output.splitlines() if line.startswith(TRACED)]


def _length_s(spans: Sequence[Span]) -> float:
    return max(span.end_s for span in spans) - min(span.start_s for span in spans)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draws a traced step of sharded training")
    parser.add_argument("--strategy", default="IIG", choices=BUILT)
    parser.add_argument("--inter", default=INTER, help="rate of each host's link")
    parser.add_argument("--intra", default=INTRA, help="rate of each host's loopback")
    parser.add_argument("--samples", type=int, default=2, help="of a micro-step on a rank")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--output", type=Path, action="append", help="NAME.png or NAME.html; may come twice")
    parser.add_argument("--redraw", action="store_true", help="from the recorded spans, without a run")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tiny model; below 50 s")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
