"""The model is the function it says it is, whatever way it is split, cached, or computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.base.errors import ConfigError
from shoestring.models.moe_lm.attention import causal_attention, rope_tables
from shoestring.models.moe_lm.config import LITE, PLUS, TINY, MoeConfig
from shoestring.models.moe_lm.model import MoeLM
from shoestring.models.moe_lm.moe import MoeLayer, sort_by_expert


def _tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TINY.vocab_size, (batch, length + 1), generator=generator)


def _gradients(model: MoeLM) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _close(found: Tensor, wanted: Tensor, relative: float) -> None:
    assert float((found - wanted).norm() / wanted.norm()) < relative


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(LITE, 16_801_974_272, 2_753_153_024), (PLUS, 290_602_910_976, 29_004_170_496)],
    ids=["lite", "plus"],
)
def test_published_parameter_counts_on_the_meta_device(config: MoeConfig, total: int, active: int) -> None:
    with torch.device("meta"):
        model = MoeLM(config, seed=None)
    assert sum(p.numel() for p in model.parameters()) == total == config.parameter_count()
    assert config.active_parameter_count() == active


def test_plus_reaches_the_published_active_count_in_no_way_of_counting() -> None:
    counts = {
        PLUS.active_parameter_count(),
        PLUS.active_parameter_count(embedding=False),
        PLUS.active_parameter_count(embedding=False, head=False),
    }
    assert counts == {29_004_170_496, 28_324_300_032, 27_644_429_568}  # 28.8B was published


def test_loss_gradients_and_stats_add_up_over_any_split() -> None:
    config = TINY.model_copy(update={"routing_warmup_steps": 10})
    model, tokens, ids = MoeLM(config, seed=1), _tokens(5, 200), [11, 3, 8, 100, 7]
    whole = model.loss(tokens, step=4, sample_ids=ids, seed=2)
    whole.loss_sum.backward()
    wanted = _gradients(model)
    model.zero_grad()
    parts = []
    for rows in ([4, 0], [2], [3, 1]):
        part = model.loss(tokens[rows], step=4, sample_ids=[ids[row] for row in rows], seed=2)
        part.loss_sum.backward()
        parts.append(part)
    _close(_gradients(model), wanted, 1e-5)
    assert sum(part.weight for part in parts) == whole.weight == 5 * 200
    for name, value in whole.stats.items():
        summed = torch.stack([part.stats[name] for part in parts]).sum(0)
        torch.testing.assert_close(summed, value, rtol=1e-4, atol=1e-3)


def test_all_parameters_receive_a_gradient() -> None:
    model = MoeLM(TINY, seed=0)
    model.loss(_tokens(4, 64), step=0, sample_ids=range(4)).loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("empty", [False, True])
def test_grouped_experts_equal_a_loop_over_tokens(empty: bool) -> None:
    torch.manual_seed(0)
    layer = MoeLM(TINY, seed=3).layers[0].moe
    assert isinstance(layer, MoeLayer)
    if empty:
        with torch.no_grad():
            layer.router.weight.zero_()  # a tie: the same two experts win everywhere, the others stay empty
    x = torch.randn(2, 90, TINY.hidden, requires_grad=True)
    probe = torch.randn(2, 90, TINY.hidden)
    out, routing = layer(x, None)
    assert int((routing.load_E == 0).sum()) == (TINY.experts - TINY.top_k if empty else 0)
    (out * probe).sum().backward()
    found = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    wanted = _naive_moe(layer, x)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    (wanted * probe).sum().backward()
    for ours, theirs in zip(found, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _naive_moe(layer: MoeLayer, x_BTh: Tensor) -> Tensor:
    prob = F.linear(x_BTh, layer.router.weight).softmax(-1)
    top, chosen = prob.topk(TINY.top_k, dim=-1)
    weight = top / top.sum(-1, keepdim=True)
    rows = []
    for x, experts, weights in zip(
        x_BTh.flatten(0, 1), chosen.flatten(0, 1), weight.flatten(0, 1), strict=True
    ):
        row = layer.shared_down @ (F.silu(layer.shared_gate_up[0] @ x) * (layer.shared_gate_up[1] @ x))
        for expert, share in zip(experts.tolist(), weights, strict=True):
            inner = F.silu(layer.gate_up[expert, 0] @ x) * (layer.gate_up[expert, 1] @ x)
            row = row + share * (layer.down[expert] @ inner)
        rows.append(row)
    return torch.stack(rows).view_as(x_BTh)


@pytest.mark.parametrize("multiple", [1, 64])
def test_sorting_places_every_assignment_once(multiple: int) -> None:
    expert = torch.tensor([[3, 0], [3, 1], [0, 3], [3, 5]])
    source, place, offsets = sort_by_expert(expert, 6, multiple)
    assert torch.equal(source[place], torch.arange(8))
    assert int((source == 8).sum()) == source.numel() - 8
    assert int(offsets[-1]) == source.numel()
    starts = torch.cat((torch.zeros(1, dtype=torch.int32), offsets[:-1]))
    for flat, row in enumerate(place.tolist()):
        owner = int(expert.flatten()[flat])
        assert int(starts[owner]) <= row < int(offsets[owner])
    assert all(int(size) % multiple == 0 for size in offsets - starts)


@pytest.mark.parametrize("length", [7, 128, 300])
def test_blockwise_attention_equals_the_fused_one(length: int) -> None:
    torch.manual_seed(0)
    heads, kv_heads, dim = 4, 2, 8
    qkv = torch.randn(3, length, (heads + 2 * kv_heads) * dim, requires_grad=True)
    cos, sin = rope_tables(0, length, dim, 600_000.0, qkv)
    out = causal_attention(qkv, cos, sin, heads, kv_heads)
    probe = torch.randn_like(out)
    (out * probe).sum().backward()
    found, qkv.grad = qkv.grad, None
    per_head = qkv.view(3, length, -1, dim).transpose(1, 2)
    angle = torch.complex(cos, sin)
    low, high = per_head[:, : heads + kv_heads].chunk(2, dim=-1)
    turned = torch.view_as_real(torch.complex(low, high) * angle).unbind(-1)
    rotated = torch.cat(turned, dim=-1)
    wanted = F.scaled_dot_product_attention(
        rotated[:, :heads],
        rotated[:, heads:],
        per_head[:, heads + kv_heads :],
        is_causal=True,
        enable_gqa=True,
    )
    wanted = wanted.transpose(1, 2).reshape(3, length, -1)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    (wanted * probe).sum().backward()
    assert found is not None and qkv.grad is not None
    torch.testing.assert_close(found, qkv.grad, rtol=1e-4, atol=1e-5)


def test_decoding_with_a_cache_equals_the_full_forward() -> None:
    model, tokens = MoeLM(TINY, seed=5), _tokens(3, 40)[:, :-1]
    hidden, _ = model.hidden_states(tokens, None)
    wanted = model.head(hidden)
    cache = model.new_cache(3, 40)
    found = [model.decode(tokens[:, :17], cache)]
    found += [model.decode(tokens[:, at : at + 1], cache) for at in range(17, 40)]
    torch.testing.assert_close(torch.stack(found, 1), wanted[:, 16:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="holds 40 tokens"):
        model.decode(tokens[:, :1], cache)


def test_token_nll_is_the_training_loss_without_the_router_terms() -> None:
    model, tokens = MoeLM(TINY, seed=6), _tokens(2, 100)
    out = model.loss(tokens, step=0, sample_ids=[0, 1])
    torch.testing.assert_close(model.token_nll(tokens).sum(), out.stats["nll_sum"], rtol=1e-5, atol=1e-3)


def test_head_loss_and_gradients_equal_autograd_with_a_detached_norm() -> None:
    model, target = MoeLM(TINY, seed=7), _tokens(1, 69)[0, 1:]
    x = torch.randn(69, TINY.hidden, requires_grad=True)
    (model.head.loss_sum(x, target) * 0.5).backward()
    found = (x.grad, model.head.weight.grad)
    x.grad, model.head.weight.grad = None, None
    weight = model.head.weight
    norm = weight.detach().norm(dim=0) + 1e-7
    (F.cross_entropy(x @ (weight / norm).t(), target, reduction="sum") * 0.5).backward()
    for ours, theirs in zip(found, (x.grad, model.head.weight.grad), strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_routing_noise_fades_and_belongs_to_the_sample() -> None:
    model = MoeLM(TINY.model_copy(update={"routing_warmup_steps": 8}), seed=8)
    tokens = _tokens(1, 64)

    def load(step: int, sample: int) -> Tensor:
        return model.loss(tokens, step=step, sample_ids=[sample], seed=1).stats["expert_load"]

    assert torch.equal(load(0, 5), load(0, 5))
    assert not torch.equal(load(0, 5), load(0, 6))
    assert not torch.equal(load(0, 5), load(1, 5))
    assert torch.equal(load(8, 5), load(9, 6))


def test_absorb_moves_towards_the_mean_and_deviation_of_the_logits() -> None:
    model = MoeLM(TINY.model_copy(update={"routing_ema": 0.0}), seed=9)
    stats = model.loss(_tokens(4, 100), step=0, sample_ids=range(4)).stats
    model.absorb(stats)
    mean = stats["router_logit_sum"] / 400
    torch.testing.assert_close(model.router_mean, mean)
    wanted = (stats["router_logit_sq_sum"] / 400 - mean.square()).sqrt()
    torch.testing.assert_close(model.router_std, wanted)


def test_bf16_compute_stays_near_fp32_and_masters_stay_fp32() -> None:
    exact, tokens = MoeLM(TINY, seed=10), _tokens(4, 100)
    rough = MoeLM(TINY.model_copy(update={"compute_dtype": "bf16"}), seed=10)
    exact.loss(tokens, step=0, sample_ids=range(4)).loss_sum.backward()
    rough.loss(tokens, step=0, sample_ids=range(4)).loss_sum.backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in rough.parameters())
    _close(_gradients(rough), _gradients(exact), 0.05)


def test_contradictory_shapes_are_refused() -> None:
    fields = TINY.model_dump()
    with pytest.raises(ConfigError, match="key-value heads"):
        MoeConfig(**{**fields, "kv_heads": 3})
    with pytest.raises(ConfigError, match="top_k is 9"):
        MoeConfig(**{**fields, "top_k": 9})
    model = MoeLM(TINY)
    with pytest.raises(ConfigError, match="512 positions"):
        model.token_nll(_tokens(1, 513))
    with pytest.raises(ConfigError, match="sample ids"):
        model.loss(_tokens(2, 8), step=0, sample_ids=[1])
