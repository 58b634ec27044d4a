"""Muon orthogonalises, AdamW is torch's, and workers that share the work get the single worker's step."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoestring.models.moe_lm.config import TINY
from shoestring.models.moe_lm.model import MoeLM
from shoestring.train.muon import MuonAdamW, OptimizerConfig, build_optimizer, orthogonalise
from tests.apart import apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one_and_directions_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(5, 24, 40) * torch.logspace(-3, 3, 5)[:, None, None]
    out = orthogonalise(matrices.to(dtype), 5).float()
    values = torch.linalg.svdvals(out)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.35
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = ((left @ right) * out).sum((1, 2)) / (24**0.5 * out.norm(dim=(1, 2)))
    assert float(cosine.min()) > 0.97


def _model_with_gradient(seed: int) -> MoeLM:
    model = MoeLM(TINY, seed=0)
    tokens = torch.randint(0, TINY.vocab_size, (4, 33), generator=torch.Generator().manual_seed(seed))
    model.loss(tokens, step=0, sample_ids=range(4)).loss_sum.backward()
    return model


def test_every_parameter_belongs_to_one_group_and_is_moved() -> None:
    model = _model_with_gradient(1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerConfig())
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert {group["rule"] for group in optimizer.param_groups} == {"muon", "adamw"}
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_adamw_equals_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(7, 3)) for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1}
    mine = MuonAdamW([{"params": [ours], "rule": "adamw", **settings}], betas=(0.9, 0.95), eps=1e-8)
    reference = torch.optim.AdamW([theirs], betas=(0.9, 0.95), eps=1e-8, **settings)  # type: ignore[arg-type]
    for _ in range(20):
        gradient = torch.randn(7, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_is_momentum_then_orthogonalisation() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(2, 12, 6))
    group = {"params": [parameter], "rule": "muon", "lr": 0.5}
    optimizer = MuonAdamW([group], momentum=0.8, dtype=torch.float32)
    mean, wanted = torch.zeros(2, 12, 6), torch.zeros(2, 12, 6)
    for _ in range(3):
        gradient = torch.randn(2, 12, 6)
        parameter.grad = gradient
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient
        ahead = 0.8 * mean + 0.2 * gradient
        step = orthogonalise(ahead.transpose(1, 2), 5).transpose(1, 2)
        wanted -= 0.5 * 2**0.5 * step
    torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-4, atol=1e-5)


class _Meeting:
    """Sums a tensor over threads."""

    def __init__(self, world: int) -> None:
        self._barrier = threading.Barrier(world, timeout=30)
        self._tensors: list[Tensor] = []

    def sum_(self, tensor: Tensor) -> None:
        self._tensors.append(tensor)
        self._barrier.wait()
        total = torch.stack(self._tensors).sum(0)
        self._barrier.wait()
        tensor.copy_(total)


@pytest.mark.parametrize("world", [2, 3])
def test_workers_that_share_the_work_make_the_single_workers_step(tmp_path: Path, world: int) -> None:
    assert apart(tmp_path, lambda: _share_the_work(world)) == ""


def _share_the_work(world: int) -> None:
    alone = _model_with_gradient(2)
    build_optimizer(alone, OptimizerConfig()).step()
    models = [_model_with_gradient(2) for _ in range(world)]
    optimizers = [build_optimizer(model, OptimizerConfig()) for model in models]
    meeting = _Meeting(world)

    def work(rank: int) -> None:
        optimizers[rank].prepare(rank, world, meeting.sum_)
        optimizers[rank].step()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for model in models:
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_failing_exchange_changes_nothing() -> None:
    model, untouched = _model_with_gradient(3), _model_with_gradient(3)
    optimizer = build_optimizer(model, OptimizerConfig())

    def broken(_: Tensor) -> None:
        raise ConnectionError("peer lost")

    with pytest.raises(ConnectionError):
        optimizer.prepare(0, 2, broken)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    assert not any(optimizer.state.values())
    optimizer.step()
    build_optimizer(untouched, OptimizerConfig()).step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_a_tiny_text_is_learnt_by_heart() -> None:
    model = MoeLM(TINY.model_copy(update={"final_norm_init": 4.0}), seed=0)
    optimizer = build_optimizer(model, OptimizerConfig())
    tokens = (torch.arange(4 * 65).view(4, 65) * 7) % 50
    losses = []
    for step in range(80):
        out = model.loss(tokens, step=step, sample_ids=range(4))
        optimizer.zero_grad()
        (out.loss_sum / out.weight).backward()
        optimizer.step()
        losses.append(float(out.stats["nll_sum"]) / out.weight)
    assert losses[0] > 5.0
    assert losses[-1] < 0.5
