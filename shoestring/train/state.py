"""What a worker holds between two steps: model, optimizer state, and how many steps are in them."""

from __future__ import annotations

import torch
import torch._dynamo  # the first optimizer would, for a second in each worker; here once, before the fork
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from shoestring.train.task import Task


class TrainState:
    """Model and optimizer of a task, made from the seed.

    Attributes:
        step: applied steps; -1 while the tensors hold nothing that may be used.
        model: the task's model on the device, fp32 master weights.
        optimizer: the task's optimizer; each group keeps its peak rate as `peak_lr`.
        gradient: float32 [all trainable elements]; each parameter's `.grad` is a view into it,
            so that one collective sums them all.
    """

    def __init__(self, task: Task, device: torch.device, seed: int) -> None:
        self.step = -1
        torch.manual_seed(seed)
        self.model: nn.Module = task.build(device).to(device)
        self.optimizer = task.optimizer(self.model)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        if not any(self.optimizer.state.values()):
            _make_state(self.model, self.optimizer)
        self.gradient = _flat_gradient(self.model, device)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that makes up the state, by a name that does not depend on the worker.

        Parameters and buffers as `model.*`, optimizer state as `optim.*`.
        """
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        model, optim = get_state_dict(self.model, self.optimizer, options=options)
        named: dict[str, object] = {f"model.{name}": value for name, value in model.items()}
        named |= {f"optim.{name}": value for name, value in optim.items() if name.startswith("state.")}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def set_rate(self, factor: float) -> float:
        """Scale every group's peak learning rate; returns the largest rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return max(float(group["lr"]) for group in self.optimizer.param_groups)


def _make_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give a lazy optimizer its state now: what is copied or restored must be there to be filled."""
    get_state_dict(model, optimizer)  # steps once on zero gradients with rate 0
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def _flat_gradient(model: nn.Module, device: torch.device) -> Tensor:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = torch.zeros(sum(parameter.numel() for parameter in trainable), dtype=torch.float32, device=device)
    offset = 0
    for parameter in trainable:
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return flat
