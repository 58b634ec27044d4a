"""Calls the real command line in a process of its own, on a model and a text that are tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = {
    "seq_len": 32, "tokenizer.vocab_size": 300, "model.layers": 1, "model.hidden": 32, "model.heads": 2,
    "model.kv_heads": 1, "model.head_dim": 16, "model.experts": 4, "model.expert_width": 16,
    "train.micro_batch": 4, "fleet.pace.budget_s": 0, "fleet.pace.steps": 6, "fleet.pace.batch": 8,
    "fleet.drill.kill": '""', "evaluate.window": 32, "evaluate.stride": 16, "evaluate.sample_tokens": 8,
    "fleet.checkpoint.every_s": 0, "compute_dtype": "fp32", "data.heldout_share": 0.3,
}  # fmt: skip


def write_texts(folder: Path, files: int = 12) -> Path:
    """A folder of small texts; every one differs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        words = [f"def f{number}_{i}(x):\n    return x + {i * number}\n" for i in range(40)]
        (folder / f"part{number}.py").write_text("".join(words))
    return folder


def tiny_sets(data: Path, cache: Path, **more: Any) -> list[str]:
    """`--set` arguments of a tiny run."""
    settings = TINY | {"data.files": json.dumps([f"{data}/*"]), "packing.cache_dir": str(cache)}
    settings |= {key.replace("__", "."): value for key, value in more.items()}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def start_shoestring(*arguments: str) -> subprocess.Popen[str]:
    """Start the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "shoestring", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shoestring(*arguments: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "shoestring", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
