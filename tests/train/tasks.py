"""Small tasks that prove the contract: none of them needed a change of the loop."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoestring.base.clock import SystemClock
from shoestring.base.errors import SampleError
from shoestring.train.task import BaseTask, LossOut, ParallelLayout, SampleIds, StepContext


class Vector(nn.Module):
    """One entry a sample."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(samples))


class CountingTask(BaseTask):
    """The update adds exactly 1 for each sample used: after an epoch the model is all ones."""

    reduction = "sum"

    def __init__(self, samples: int, poison: tuple[int, ...] = (), pause_s: float = 0.0) -> None:
        self.samples = samples
        self._poison = set(poison)

    def build(self, device: torch.device) -> nn.Module:
        return Vector(self.samples)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1.0)

    def load(self, ids: SampleIds) -> Any:
        bad = {int(i): "poison" for i in ids if int(i) in self._poison}
        if bad:
            raise SampleError(bad)
        return torch.from_numpy(ids)

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        assert isinstance(model, Vector)
        return LossOut(-model.counts[batch].sum(), float(len(ids)))


class WindingTask(CountingTask):
    """Counts through many modules, each of which takes its time for samples of the upper half: whoever has
    those is late, in the middle of a pass."""

    rooms, work = 40, 25

    def build(self, device: torch.device) -> nn.Module:
        model = Vector(self.samples)
        model.rooms = nn.ModuleList(nn.Identity() for _ in range(self.rooms))
        return model

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        block = torch.ones(64, 64)
        for room in model.rooms:
            for _ in range(self.work * int((ids >= self.samples // 2).sum())):
                block = (block @ block).tanh()
            room(block)
        return super().loss(model, batch, ids, context)


PLACES = ("build", "load", "loss", "backward", "stats", "absorb", "update", "updated")
"""Where DyingTask can die."""


class DyingTask(CountingTask):
    """One process in a run kills itself at one place, in its 40th call there (its first one of `build`)."""

    def __init__(self, samples: int, place: str, marks: str) -> None:
        super().__init__(samples)
        self._place = place
        self._mark = Path(marks) / f"died in {place}"
        self._calls = 0

    def pass_by(self, place: str) -> None:
        """Die here, if this is the place and nobody has died yet."""
        if place != self._place:
            return
        self._calls += 1
        if self._calls >= (1 if place == "build" else 40):
            try:
                self._mark.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    def build(self, device: torch.device) -> nn.Module:
        self.pass_by("build")
        return super().build(device)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        made = super().optimizer(model)
        made.register_step_pre_hook(lambda *_: self.pass_by("update"))
        made.register_step_post_hook(lambda *_: self.pass_by("updated"))
        return made

    def load(self, ids: SampleIds) -> Any:
        self.pass_by("load")
        return super().load(ids)

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        self.pass_by("loss")
        out = super().loss(model, batch, ids, context)
        out.loss_sum.register_hook(lambda _: self.pass_by("backward"))
        return out

    def stats(self, model: nn.Module) -> dict[str, Tensor]:
        self.pass_by("stats")
        return {}

    def absorb(self, model: nn.Module, stats: dict[str, Tensor]) -> None:
        self.pass_by("absorb")


class LaggardTask(CountingTask):
    """The first process that makes an optimizer takes its time for each update."""

    work_s = 0.05

    def __init__(self, samples: int, marks: str) -> None:
        super().__init__(samples)
        self._mark = Path(marks) / "laggard"

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        made = super().optimizer(model)
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return made
        made.register_step_pre_hook(lambda *_: burn(self.work_s))
        return made


def burn(seconds: float) -> None:
    """Compute for a while."""
    clock = SystemClock()
    until_s, block = clock.now() + seconds, torch.ones(64, 64)
    while clock.now() < until_s:
        block = (block @ block).tanh()


class SlowOneTask(CountingTask):
    """The first process that computes takes its time for each pass."""

    work_s = 0.08

    def __init__(self, samples: int, marks: str) -> None:
        super().__init__(samples)
        self._mark = Path(marks) / "slow one"
        self._slow: bool | None = None

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        if self._slow is None:
            try:
                self._mark.touch(exist_ok=False)
                self._slow = True
            except FileExistsError:
                self._slow = False
        if self._slow:
            burn(self.work_s)
        return super().loss(model, batch, ids, context)


class HungryTask(CountingTask):
    """Samples of the upper half need `sample_bytes` of memory each, in a process that may have `room_bytes`
    more than before its first pass (of the GPU's, where there is one); so passes fail, the first of a step or
    a later one. For worker processes only: the limit stays."""

    def __init__(self, samples: int, sample_bytes: int, room_bytes: int) -> None:
        super().__init__(samples)
        self._sample_bytes = sample_bytes
        self._room_bytes = room_bytes
        self._limited = False

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        device = next(model.parameters()).device
        if device.type == "cuda" and not self._limited:
            self._limited = True
            whole = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(self._room_bytes / whole, device)
        elif not self._limited:
            self._limited = True
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + self._room_bytes
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        hungry = int((ids >= self.samples // 2).sum())
        torch.empty(hungry * self._sample_bytes, dtype=torch.uint8, device=device)
        return super().loss(model, batch, ids, context)


class RegressionTask(BaseTask):
    """A small MLP on fixed random data; every part of the contract in use (stats, metrics, counts)."""

    metrics = ("error",)
    counts = ("tokens",)

    def __init__(self, samples: int = 4096, width: int = 32) -> None:
        self.samples = samples
        generator = torch.Generator().manual_seed(7)
        self._x = torch.randn(samples, 16, generator=generator)
        self._y = torch.sin(self._x @ torch.randn(16, 4, generator=generator))
        self._width = width

    def build(self, device: torch.device) -> nn.Module:
        model = nn.Sequential(nn.Linear(16, self._width), nn.Tanh(), nn.Linear(self._width, 4))
        model.register_buffer("mean", torch.zeros(16))
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    def load(self, ids: SampleIds) -> Any:
        return self._x[ids], self._y[ids]

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        x, y = batch
        squared = (model(x - model.mean) - y).square().sum(1)
        weight = float(len(ids))
        return LossOut(
            squared.sum(),
            weight,
            {"error": squared.detach().sqrt().sum()},
            {"tokens": weight},
            {"x": x.sum(0), "n": torch.tensor([weight])},
        )

    def stats(self, model: nn.Module) -> dict[str, Tensor]:
        return {"x": torch.zeros(16), "n": torch.zeros(1)}

    def absorb(self, model: nn.Module, stats: dict[str, Tensor]) -> None:
        model.mean.lerp_((stats["x"] / stats["n"].clamp(min=1)).float(), 0.1)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"squared_error": float((model(self._x - model.mean) - self._y).square().sum(1).mean())}


class TellingTask(RegressionTask):
    """Says which samples each pass uses. Those of the upper half take their time: who has them is late."""

    work = 60

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        print("pass", context.step, *ids, flush=True)
        block = torch.ones(64, 64)
        for _ in range(self.work * int((ids >= self.samples // 2).sum())):
            block = (block @ block).tanh()
        return super().loss(model, batch, ids, context)


class ClickTask(BaseTask):
    """A small recommender: two tables (one of them with padding, used twice in a pass), a dense part."""

    samples = 3000
    users, items = 101, 57

    def __init__(self, sparse: bool, optimizer: str = "Adagrad") -> None:
        self._sparse = sparse
        self._optimizer = optimizer

    def build(self, device: torch.device) -> nn.Module:
        model = nn.Module()
        model.users = nn.Embedding(self.users, 8, sparse=self._sparse)
        model.items = nn.Embedding(self.items, 8, padding_idx=0, sparse=self._sparse)
        model.dense = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 1))
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        # From zero, the first update has the size of the rate wherever a gradient is not exactly zero:
        # rounding decides about its sign.
        more = {"initial_accumulator_value": 0.1} if self._optimizer == "Adagrad" else {}
        made: torch.optim.Optimizer = getattr(torch.optim, self._optimizer)(
            model.parameters(), lr=0.1, **more
        )
        return made

    def load(self, ids: SampleIds) -> Any:
        rng = [np.random.default_rng(int(i)) for i in ids]
        users = torch.tensor([r.integers(self.users) for r in rng])
        items = torch.from_numpy(np.stack([r.integers(0, self.items, 2) for r in rng]))
        clicked = (users % 7 == items.sum(1) % 7).float()
        return users, items, clicked

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        users, items, clicked = batch
        seen = [model.users(users), model.items(items[:, 0]), model.items(items[:, 1])]
        logits = model.dense(torch.cat(seen, 1))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, clicked, reduction="sum")
        return LossOut(loss, float(len(ids)))


class ClickPartsTask(ClickTask):
    """The same, built without values and brought one parameter at a time, from one seeded stream."""

    def build(self, device: torch.device) -> nn.Module:
        with device:
            model = super().build(device)
        if device.type != "meta":
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for name, value in self.initial_values(model):
                    parameters[name].copy_(value)
        return model

    def initial_values(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Of all parameters that the model has."""
        generator = torch.Generator().manual_seed(11)
        for name, parameter in model.named_parameters():
            value = 0.3 * torch.randn(parameter.shape, generator=generator)
            if name == "items.weight":
                value[0] = 0.0
            yield name, value

    def parallel_layout(self, model: nn.Module) -> ParallelLayout:
        return ParallelLayout(initial=self.initial_values)


class SineMaml(BaseTask):
    """MAML (arXiv 1703.03400): a sample is a sine wave; inner steps on support, outer loss on query."""

    samples = 4096
    metrics = ("before",)

    def __init__(self, inner_rate: float = 0.05, inner_steps: int = 1) -> None:
        self._inner_rate = inner_rate
        self._inner_steps = inner_steps

    def build(self, device: torch.device) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    def load(self, ids: SampleIds) -> Any:
        waves = [np.random.default_rng(int(i)) for i in ids]
        amplitude = np.array([w.uniform(0.1, 5.0) for w in waves])
        shift = np.array([w.uniform(0.0, np.pi) for w in waves])
        x = np.stack([w.uniform(-5, 5, size=(20, 1)) for w in waves])
        y = amplitude[:, None, None] * np.sin(x + shift[:, None, None])
        return torch.from_numpy(x).float(), torch.from_numpy(y).float()

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        x, y = batch
        weights = dict(model.named_parameters())

        def one(x_S1: Tensor, y_S1: Tensor) -> tuple[Tensor, Tensor]:
            adapted, before = weights, self._error(model, weights, x_S1[10:], y_S1[10:])
            for _ in range(self._inner_steps):
                grads = torch.func.grad(lambda w: self._error(model, w, x_S1[:10], y_S1[:10]))(adapted)
                adapted = {name: w - self._inner_rate * grads[name] for name, w in adapted.items()}
            return self._error(model, adapted, x_S1[10:], y_S1[10:]), before

        after, before = torch.func.vmap(one)(x, y)
        return LossOut(after.sum(), float(len(ids)), {"before": before.detach().sum()})

    @staticmethod
    def _error(model: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(model, weights, (x,)) - y).square().mean()


class Writer(nn.Module):
    """Two models in one state: `writer` makes the data that `reader` learns from."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = nn.Linear(4, 8).requires_grad_(False)
        self.reader = nn.Linear(4, 8)


class GenerateThenLearn(BaseTask):
    """The frozen model samples a token per prompt; the trained one learns to predict it."""

    samples = 2048

    def build(self, device: torch.device) -> nn.Module:
        return Writer()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)

    def load(self, ids: SampleIds) -> Any:
        return torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(int(i))) for i in ids])

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        assert isinstance(model, Writer)
        with torch.no_grad():
            chances = (3 * model.writer(batch)).softmax(-1)
            drawn = [
                torch.multinomial(
                    row,
                    1,
                    generator=torch.Generator().manual_seed(hash((context.seed, context.step, int(i)))),
                )
                for row, i in zip(chances, ids, strict=True)
            ]
        loss = nn.functional.cross_entropy(model.reader(batch), torch.cat(drawn), reduction="sum")
        return LossOut(loss, float(len(ids)))


def counting(settings: dict[str, Any], run_dir: Path) -> CountingTask:
    """Maker for workers."""
    return CountingTask(settings["samples"], tuple(settings.get("poison", ())))


def winding(settings: dict[str, Any], run_dir: Path) -> WindingTask:
    """Maker for workers."""
    return WindingTask(settings["samples"])


def dying(settings: dict[str, Any], run_dir: Path) -> DyingTask:
    """Maker for workers."""
    return DyingTask(**settings)


def laggard(settings: dict[str, Any], run_dir: Path) -> LaggardTask:
    """Maker for servers."""
    return LaggardTask(settings["samples"], settings["marks"])


def slow_one(settings: dict[str, Any], run_dir: Path) -> SlowOneTask:
    """Maker for workers."""
    return SlowOneTask(settings["samples"], settings["marks"])


def hungry(settings: dict[str, Any], run_dir: Path) -> HungryTask:
    """Maker for workers."""
    return HungryTask(**settings)


def regression(settings: dict[str, Any], run_dir: Path) -> RegressionTask:
    """Maker for workers."""
    return RegressionTask(**settings)


def click_parts(settings: dict[str, Any], run_dir: Path) -> ClickPartsTask:
    """Maker for workers."""
    return ClickPartsTask(**settings)


def telling(settings: dict[str, Any], run_dir: Path) -> TellingTask:
    """Maker for workers."""
    return TellingTask(**settings)


def click(settings: dict[str, Any], run_dir: Path) -> ClickTask:
    """Maker for workers."""
    return ClickTask(**settings)


def sine(settings: dict[str, Any], run_dir: Path) -> SineMaml:
    """Maker for workers."""
    return SineMaml()


def generate_then_learn(settings: dict[str, Any], run_dir: Path) -> GenerateThenLearn:
    """Maker for workers."""
    return GenerateThenLearn()
