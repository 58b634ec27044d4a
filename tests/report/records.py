"""Records of runs that never were, written with the real RunRecord."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from shoestring.base.clock import FakeClock
from shoestring.base.record import RunRecord

LIBRARY = "/* no charts are drawn in this test */"
WALL_S = 1_700_000_000.0
SAMPLES = {"w0": 24, "w1": 8}
PLAN: dict[str, Any] = {
    "workers": 2,
    "threads": 1,
    "reason": "fastest of the 2 that fit: 0.29 s a step predicted, 4% of it exchange",
    "alternatives": [
        {"name": "1 workers x 2 threads", "workers": 1, "threads": 2, "compute_s": 0.34, "exchange_s": 0.0,
         "step_s": 0.34, "memory_bytes": 900_000_000, "survives_a_worker": False,
         "rejected": "1.17 x the step time of the chosen way"},
        {"name": "2 workers x 1 threads", "workers": 2, "threads": 1, "compute_s": 0.279, "exchange_s": 0.011,
         "step_s": 0.29, "memory_bytes": 1_400_000_000, "survives_a_worker": True, "rejected": ""},
    ],
}  # fmt: skip
DATA: dict[str, Any] = {
    "files": 1721,
    "held_out_files": 68,
    "tokens": 9_123_456,
    "text_bytes": 29_876_543,
    "vocabulary": 8192,
    "skipped": [
        {"path": "lib/broken<b>.txt.gz", "reason": "truncated at byte 1044"},
        {"path": "lib/picture.py", "reason": "not text: byte 0x89 at 0"},
    ],
}
RESULT: dict[str, Any] = {
    "bits_per_byte": {"model": 1.523, "xz_each_file": 1.611, "xz_one_archive": 1.352, "5_gram": 1.81},
    "held_out_bytes": 1_234_567,
    "train_bits_per_byte": 1.402,
    "sample": "def main(argv=None):\n    '''Run 3 <b>tests</b> & more </script>.'''\n    return 42\n",
}


class Writer:
    """Writes a plausible run step by step.

    Args:
        path: the event log.
    """

    def __init__(self, path: Path) -> None:
        self.clock = FakeClock(WALL_S)
        self.record = RunRecord(path, "coordinator", self.clock)
        self.used = 0

    def begin(self, resumed: bool = False, **settings: Any) -> None:
        """`run`, and on the first start `data` and `plan`."""
        nested = {"train": {"seed": 7, "clip": 1.0, **settings}, "fleet": {"members": {"workers": 2}}}
        self.record.append(
            "run", name="trial-1", recipe="demo", job="pretrain", resumed=resumed, settings=nested, seed=7,
            versions={"shoestring": "0.1.0", "torch": "2.13.0"}, machine={"cores": 2, "memory_bytes": 2**34},
        )  # fmt: skip
        if not resumed:
            self.clock.advance(2.0)
            self.record.append("data", **DATA)
            self.record.append("plan", **PLAN)

    def round(self, number: int, members: tuple[str, ...], step: int, reform_s: float, reason: str) -> None:
        """A round forms."""
        self.clock.advance(reform_s)
        self.record.append(
            "round", round_id=number, members=list(members), step=step, reform_s=reform_s, state_from="w0",
            reason=reason,
        )  # fmt: skip

    def steps(self, first: int, last: int, members: tuple[str, ...], round_id: int, **metrics: float) -> None:
        """Steps `first`..`last`, 0.5 s each; a decision not to act every 20."""
        for step in range(first, last + 1):
            self.clock.advance(0.5)
            samples = {name: SAMPLES[name] for name in members}
            self.used += sum(samples.values())
            loss = 2 + 6 * math.exp(-step / 40) + 0.1 * math.sin(step)
            self.record.append(
                "step", step=step, round_id=round_id, metrics={"loss": loss, "balance": 1.01, **metrics},
                counts={"tokens": 256 * sum(samples.values())}, batch=sum(samples.values()), took_s=0.5,
                todo=100_000 - self.used, done=self.used,
                workers={
                    name: {
                        "samples": n, "compute_s": 0.015 * n, "exchange_s": 0.02, "memory_bytes": 10**9 + step
                    }
                    for name, n in samples.items()
                },
            )  # fmt: skip
            if step % 20 == 0:
                self.record.append(
                    "decision", step=step, action="none", reason=f"times differ by 3% at step {step}",
                )  # fmt: skip

    def fault(self, worker: str, step: int) -> None:
        """A worker dies."""
        self.record.append(
            "fault", step=step, worker=worker, reason=f"{worker} is gone (signal 9): restart in 0.5 s",
            detail="Traceback:\n  line 12\nsignal 9",
        )  # fmt: skip

    def end(self, status: str, error: str = "", todo: str = "") -> None:
        """The end of a session."""
        self.record.append("end", status=status, error=error, todo=todo)
        self.record.close()


def whole_run(run_dir: Path) -> Path:
    """A finished run: 120 steps, one death, one re-forming, checkpoints, evaluations, a result."""
    writer = Writer(run_dir / "events.jsonl")
    writer.begin()
    writer.round(1, ("w0", "w1"), 0, 0.4, "start")
    writer.steps(1, 50, ("w0", "w1"), 1)
    writer.fault("w1", 50)
    writer.round(2, ("w0",), 50, 0.7, "w1 is gone")
    writer.steps(51, 60, ("w0",), 2)
    writer.round(3, ("w0", "w1"), 60, 0.25, "w1 has arrived")
    writer.steps(61, 100, ("w0", "w1"), 3)
    writer.record.append(
        "decision",
        step=100,
        action="adjust_batch",
        reason="w1 takes 3.0 x as long",
        shares={"w0": 0.75, "w1": 0.25},
    )
    writer.steps(101, 120, ("w0", "w1"), 3)
    writer.record.append(
        "checkpoint",
        step=120,
        size_bytes=48_000_000,
        pause_s=0.21,
        path="checkpoints/step-00000120",
        reason="the end",
    )
    for name, value in (("model", 1.523), ("xz -9e, each file", 1.611)):
        writer.record.append("evaluation", name=name, value=value, unit="bits per byte, held-out")
    writer.record.append("result", took_s=12.5, **RESULT)
    writer.end("finished")
    return run_dir
