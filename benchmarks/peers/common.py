"""What every arm of the comparison shares: the model, the data, the optimizer's settings and the clock.

An arm is one way of training the same model on the same samples. It gives a step and says what it holds; all
that is measured is measured here, so that no arm is timed in a way of its own. `benchmarks.peers.run` starts
the peers' arms, and an arm of ours hands itself to `measure` in the same way.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# (vocabulary, width, layers, heads, width of the feed-forward): multiples of 16, so that 16 ranks cut evenly.
SHAPES = {
    "llama_tiny": (256, 64, 2, 4, 128),
    "llama_8m": (2048, 320, 6, 5, 864),
    "llama_5m": (2048, 256, 5, 4, 704),
    "llama_14m": (2048, 448, 5, 7, 1344),
}


@dataclass(frozen=True)
class Setup:
    """One measurement.

    Attributes:
        model: a name in SHAPES.
        steps, warmup: optimizer steps that are timed, and those before them; losses are kept of both.
        accumulation: s, micro-steps to an optimizer step.
        micro_batch, length: samples of a micro-step on one rank, and tokens of a sample.
        dtype: of compute and of what is sent; masters and moments are fp32 in every arm.
        ranks_per_host: m.
        seed: of weights and data.
        lr, beta1, beta2, eps: of AdamW; no weight decay, no clipping. A large eps makes the update depend on
            the scale of the gradient, which plain Adam hides: the checks use it.
    """

    model: str = "llama_8m"
    steps: int = 5
    warmup: int = 2
    accumulation: int = 4
    micro_batch: int = 1
    length: int = 64
    dtype: str = "bf16"
    ranks_per_host: int = 2
    seed: int = 0
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    @property
    def compute_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class StateBytes:
    """What one rank holds between the last backward pass and the update, by the sizes of the tensors.

    Attributes:
        parameters: working parameters in the compute dtype that outlive a micro-step, second copies too.
        gradients: accumulated gradients.
        states: fp32 masters and moments.
    """

    parameters_bytes: int
    gradients_bytes: int
    states_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three."""
        return self.parameters_bytes + self.gradients_bytes + self.states_bytes


@dataclass(frozen=True)
class Seen:
    """What an arm says of itself before an update: bytes on this rank, and the norm of the whole gradient."""

    held: StateBytes
    gradient_norm: float


class Arm(Protocol):
    """One way to train."""

    def step(self, batches: list[Tensor], look: Callable[[Seen], None] | None) -> Tensor:
        """One optimizer step over this process' micro-batches.

        Args:
            batches: int64 [samples, length] each.
            look: called, where there is one, between the last backward pass and the update, on all ranks.

        Returns:
            The losses, fp32 [len(batches)], of this process' samples only.
        """
        ...

    def settle(self) -> None:
        """Return once nothing of the last step is under way any more."""
        ...

    def close(self) -> None:
        """End threads and connections of its own."""
        ...


def build_model(setup: Setup) -> LlamaForCausalLM:
    """A Llama of the wanted shape in fp32, the same weights in every process."""
    vocabulary, width, layers, heads, inner = SHAPES[setup.model]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=inner, max_position_embeddings=max(setup.length, 64),
        tie_word_embeddings=False, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(setup.seed)
    model = LlamaForCausalLM(config)
    model.train()
    return model


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean next-token loss of int64 [samples, length], in fp32."""
    loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


def micro_batch(setup: Setup, step: int, micro: int, rank: int) -> Tensor:
    """int64 [micro_batch, length]: fixed by (seed, step, micro, rank) alone, so equal in every arm.

    Tokens are uneven (the cube of a uniform number), so that there is something to learn in ten steps and a
    wrong gradient shows in the loss.
    """
    generator = torch.Generator().manual_seed(((setup.seed * 10_007 + step) * 1_009 + micro) * 4_099 + rank)
    uniform = torch.rand(setup.micro_batch, setup.length, generator=generator, dtype=torch.float64)
    return (uniform**3 * SHAPES[setup.model][0]).long()


def adamw(setup: Setup, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimizer of every arm, with torch's fused kernel."""
    return torch.optim.AdamW(
        parameters, lr=setup.lr, betas=(setup.beta1, setup.beta2), eps=setup.eps, weight_decay=0.0, fused=True
    )


def join() -> tuple[int, int]:
    """(rank, size) of this process after joining the others over gloo, one thread to a rank."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=size)
    return rank, size


def measure(arm: Arm, setup: Setup, ranks: Iterable[int], check: bool = False) -> dict[str, Any]:
    """Train `warmup` + `steps` steps and time the latter, each from a barrier. Every rank calls it.

    Args:
        ranks: whose samples this process computes: its own rank's, or everybody's in the single process.
        check: look at the gradient in every step, which costs traffic: the times are then worth nothing.

    Returns:
        losses (mean over the global batch, every step), step_s (timed steps, the slowest rank's),
        host_sent_bytes (timed steps, between hosts, the busiest host's, barriers and all), mean_sent_bytes (a
        step's share of what the busiest host sent in all timed steps: what hosts send late differs by step),
        gradient_norms (of the steps looked at), and the bytes held (the fullest rank's, in the first step).
    """
    numbers = list(ranks)
    losses, step_s, marks_bytes = [], [], []
    seen: list[Seen] = []
    for step in range(setup.warmup + setup.steps):
        batches = [
            micro_batch(setup, step, micro, rank) for rank in numbers for micro in range(setup.accumulation)
        ]
        look = seen.append if check or step == 0 else None
        barrier()
        # From start to start: what an arm sends on after its step is counted, once.
        marks_bytes.append(float(host_sent_bytes()))
        start = perf_counter()
        found = arm.step(batches, look)
        if step + 1 in (setup.warmup, setup.warmup + setup.steps):
            arm.settle()  # so that what the timed steps send is sent, and timed, in them
        step_s.append(perf_counter() - start)
        losses.append(float(found.double().mean()))
    barrier()
    marks_bytes.append(float(host_sent_bytes()))
    sent_bytes = [after - before for before, after in itertools.pairwise(marks_bytes)]
    held = asdict(seen[0].held)
    return {
        "losses": [loss / processes() for loss in over_ranks(losses, dist.ReduceOp.SUM)],
        "gradient_norms": [one.gradient_norm for one in seen],
        "host_sent_bytes": over_ranks(sent_bytes[setup.warmup :], dist.ReduceOp.MAX),
        "mean_sent_bytes": over_ranks([sum(sent_bytes[setup.warmup :]) / setup.steps], dist.ReduceOp.MAX)[0],
        "step_s": over_ranks(step_s[setup.warmup :], dist.ReduceOp.MAX),
        **dict(zip(held, map(int, over_ranks(list(held.values()), dist.ReduceOp.MAX)), strict=True)),
    }


class Plain:
    """The model in one process: the reference for losses, and what the others compute, without their traffic.

    Args:
        states: parts into which masters and moments are cut; this process updates one of them. 1 trains;
            above that only the cost is right.
    """

    def __init__(self, setup: Setup, states: int = 1) -> None:
        self._model = build_model(setup).to(setup.compute_dtype)
        self._working = list(self._model.parameters())
        total = sum(parameter.numel() for parameter in self._working)
        self._masters = torch.cat([p.detach().float().reshape(-1) for p in build_model(setup).parameters()])
        self._part = slice(0, -(-total // states))
        self._masters = self._masters[self._part].clone()
        self._optimizer = adamw(setup, [self._masters])

    def step(self, batches: list[Tensor], look: Callable[[Seen], None] | None) -> Tensor:
        """See Arm."""
        losses = []
        for batch in batches:
            loss = loss_of(self._model, batch)
            (loss / len(batches)).backward()
            losses.append(loss.detach())
        gradient = torch.cat([_gradient(parameter).reshape(-1) for parameter in self._working])
        self._masters.grad = gradient[self._part].float()
        if look is not None:
            look(Seen(self._held(), float(gradient.double().norm())))
        self._optimizer.step()
        self._masters.grad = None
        self._model.zero_grad()
        if len(self._masters) == len(gradient):
            parts = self._masters.split([parameter.numel() for parameter in self._working])
            with torch.no_grad():
                for parameter, part in zip(self._working, parts, strict=True):
                    parameter.copy_(part.view_as(parameter))
        return torch.stack(losses)

    def settle(self) -> None:
        """See Arm: nothing is under way."""

    def close(self) -> None:
        """See Arm: there is nothing to end."""

    def _held(self) -> StateBytes:
        moments = [value for state in self._optimizer.state.values() for value in state.values()]
        # The moments appear with the first update; they are as large as the masters, each.
        states = bytes_of([self._masters, *moments]) if moments else 3 * bytes_of([self._masters])
        return StateBytes(bytes_of(self._working), bytes_of(map(_gradient, self._working)), states)


def compute_only(setup: Setup, states: int, steps: int = 3) -> float:
    """Seconds of a step without traffic, while every rank computes one (median of `steps`).

    The ranks of a machine share its cores and its memory, so this is no single process' time.

    Args:
        states: parts into which the arm cuts its optimizer states.
    """
    arm = Plain(setup, states)
    alone = replace(setup, steps=steps, warmup=1)
    step_s: list[float] = measure(arm, alone, [rank_here()])["step_s"]
    del arm
    gc.collect()
    return statistics.median(step_s)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind these tensors, each piece of memory once, whole."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def processes() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank_here() -> int:
    """This process' number."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all ranks."""
    if processes() > 1:
        dist.barrier()


def over_ranks(values: list[float], op: Any) -> list[float]:
    """Numbers reduced over all ranks, fp64."""
    tensor = torch.tensor(values, dtype=torch.float64)
    if processes() > 1:
        dist.all_reduce(tensor, op=op)
    return [float(value) for value in tensor]


def host_sent_bytes() -> int:
    """Bytes that this host (this network namespace) has sent so far, its loopback left out."""
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    counted = [line.partition(":") for line in lines]
    return sum(int(rest.split()[8]) for name, _, rest in counted if name.strip() != "lo")


def peak_rss_bytes() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "a parameter took no part in the loss"
    return parameter.grad
