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


def hold_to_share(context: StageContext) -> None:
    """No more of a shared GPU's memory than this process's part: who takes too much runs out itself, and not
    another. Where torch has not touched the GPU it is left alone, as is a bound that the stage has set."""
    if context.device_share == 1 or not context.device.startswith("cuda") or not torch.cuda.is_initialized():
        return
    device = torch.device(context.device)
    if torch.cuda.get_per_process_memory_fraction(device) == 1:
        torch.cuda.set_per_process_memory_fraction(context.device_share, device)
