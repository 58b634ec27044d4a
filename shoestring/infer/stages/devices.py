"""Where torch computes for a stage (source: ours)."""

from __future__ import annotations

import torch

from shoestring.infer.batch import StageContext


def device_of(context: StageContext) -> torch.device:
    """The stage's device; on a CPU torch takes the stage's number of threads from now on."""
    device = torch.device(context.device)
    if device.type == "cpu":
        torch.set_num_threads(context.threads)
    hold_to_share(context)
    return device


def hold_to_share(context: StageContext) -> None:
    """No more of a shared GPU's memory than this process's part: whoever takes too much runs out itself, and
    not another."""
    if context.device.startswith("cuda") and context.device_share < 1:
        torch.cuda.set_per_process_memory_fraction(context.device_share, torch.device(context.device))
