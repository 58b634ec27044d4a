"""Where torch computes for a stage (source: ours)."""

from __future__ import annotations

import torch

from shoestring.infer.batch import StageContext


def device_of(context: StageContext) -> torch.device:
    """The stage's device; on a CPU torch takes the stage's number of threads from now on."""
    device = torch.device(context.device)
    if device.type == "cpu":
        torch.set_num_threads(context.threads)
    return device
