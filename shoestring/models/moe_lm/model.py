"""The language model: embedding, layers, head; its loss, its decoding, its router statistics.

Shapes: B sequences, T tokens, h hidden, L layers, E experts, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.base.errors import ConfigError
from shoestring.models.moe_lm.attention import Attention, KvCache, rope_tables
from shoestring.models.moe_lm.config import ComputeDtype, MoeConfig
from shoestring.models.moe_lm.head import NormHead
from shoestring.models.moe_lm.kernels import RmsNormFn
from shoestring.models.moe_lm.moe import MoeLayer, RouterOut, RoutingNoise

DTYPES: Mapping[ComputeDtype, torch.dtype] = MappingProxyType({"bf16": torch.bfloat16, "fp32": torch.float32})


@dataclass(frozen=True)
class LossOut:
    """One micro-batch's contribution; every field adds up over micro-batches and workers.

    Args:
        loss_sum: differentiable scalar: what is minimised, summed over target tokens.
        weight: target tokens; the step divides the summed gradients by the summed weights.
        stats: detached sums: nll_sum, balance_sum, z_sum (nats or plain), tokens, expert_load [L, E],
            router_logit_sum [L, E], router_logit_sq_sum [L, E].
    """

    loss_sum: Tensor
    weight: float
    stats: dict[str, Tensor]


class RmsNorm(nn.Module):
    """Root-mean-square norm with a gain [h]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., h] -> [..., h], mean square in fp32."""
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = RmsNormFn.apply(flat, self.weight.to(x.dtype), self.eps)  # type: ignore[no-untyped-call]
        shaped: Tensor = out.view_as(x)
        return shaped


class Block(nn.Module):
    """Pre-norm attention, then pre-norm mixture of experts, each added to the residual stream."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config)
        self.moe_norm = RmsNorm(config.hidden, config.norm_eps)
        self.moe = MoeLayer(config)

    def forward(
        self, x_BTh: Tensor, cos: Tensor, sin: Tensor, noise: RoutingNoise | None
    ) -> tuple[Tensor, RouterOut]:
        """[B, T, h] -> ([B, T, h], routing)."""
        x_BTh = x_BTh + self.attention(self.attention_norm(x_BTh), cos, sin)
        mixed, routing = self.moe(self.moe_norm(x_BTh), noise)
        return x_BTh + mixed, routing

    def decode(self, x_BTh: Tensor, cos: Tensor, sin: Tensor, cache: KvCache, layer: int) -> Tensor:
        """New tokens against the cache: [B, T, h] -> [B, T, h]."""
        x_BTh = x_BTh + self.attention.decode(self.attention_norm(x_BTh), cos, sin, cache, layer)
        mixed, _ = self.moe(self.moe_norm(x_BTh), None)
        total: Tensor = x_BTh + mixed
        return total


class MoeLM(nn.Module):
    """The model. Parameters are the fp32 masters; forward casts working copies to the compute dtype.

    Args:
        config: shapes and coefficients.
        seed: of the initial weights; None leaves them unset (meta device, or before loading).
    """

    router_mean: Tensor
    router_std: Tensor

    def __init__(self, config: MoeConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.hidden))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = RmsNorm(config.hidden, config.norm_eps)
        self.head = NormHead(config)
        self.register_buffer("router_mean", torch.zeros(config.layers, config.experts))
        self.register_buffer("router_std", torch.ones(config.layers, config.experts))
        if seed is not None:
            self.reset_parameters(seed)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the activations."""
        return DTYPES[self.config.compute_dtype]

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw all weights anew from `seed`: normal matrices, gains of one (the last: `final_norm_init`)."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_values(seed):
            if name in parameters:
                parameters[name].copy_(value)

    def initial_values(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """(name, value) of each parameter, then of each buffer, in fp32 on the CPU, one at a time.

        Depends on `seed` and the shapes alone, so the model may be on the meta device.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        gain = self.config.final_norm_init
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                value = gain if name.startswith("final_norm") else 1.0
                yield name, torch.full(parameter.shape, value, device="cpu")
                continue
            drawn = torch.randn(parameter.shape, generator=generator, device="cpu")
            yield name, drawn * self._init_std(name, parameter)
        yield "router_mean", torch.zeros(self.router_mean.shape, device="cpu")
        yield "router_std", torch.ones(self.router_std.shape, device="cpu")

    def _init_std(self, name: str, parameter: Tensor) -> float:
        config = self.config
        by_fan_in = config.init == "fan_in"
        if name == "embed":
            std = 1.0 if by_fan_in else config.init_std
            return std if config.embed_init_std is None else config.embed_init_std
        std = float(parameter.shape[-1]) ** -0.5 if by_fan_in else config.init_std
        into_residual = name.endswith((".dense", ".down", ".shared_down"))
        return std * config.residual_init if into_residual else std

    def hidden_states(
        self, tokens_BT: Tensor, noise: Sequence[RoutingNoise] | None
    ) -> tuple[Tensor, list[RouterOut]]:
        """Run all layers on whole sequences.

        tokens_BT [B, T] int64 -> (last hidden states after the norm [B, T, h], routing of each layer).

        Raises:
            ConfigError: if the sequences are longer than `max_positions`.
        """
        length = tokens_BT.shape[1]
        self._check_length(length)
        x_BTh = F.embedding(tokens_BT, self.embed.to(self.compute_dtype))
        cos, sin = rope_tables(0, length, self.config.head_dim, self.config.rope_theta, x_BTh)
        routings: list[RouterOut] = []
        for index, block in enumerate(self.layers):
            x_BTh, routing = block(x_BTh, cos, sin, None if noise is None else noise[index])
            routings.append(routing)
        return self.final_norm(x_BTh), routings

    def loss(self, tokens_BT1: Tensor, *, step: int, sample_ids: Sequence[int], seed: int = 0) -> LossOut:
        """Training loss of a micro-batch, a sum over samples: any split of a batch gives the same total.

        Args:
            tokens_BT1: [B, T + 1] int64; position t predicts t + 1.
            step: global step, which sets the strength of the routing warm-up.
            sample_ids: the B samples; routing noise depends on (seed, step, sample id), never on the worker.
            seed: of the run.

        Raises:
            ConfigError: if the sequences are too long, or ids and rows differ in number.
        """
        if len(sample_ids) != tokens_BT1.shape[0]:
            raise ConfigError(
                f"{len(sample_ids)} sample ids for {tokens_BT1.shape[0]} sequences", "give one id a sequence"
            )
        inputs, targets = tokens_BT1[:, :-1], tokens_BT1[:, 1:].reshape(-1)
        noise = self._routing_noise(step, sample_ids, seed, inputs.shape[1])
        hidden, routings = self.hidden_states(inputs, noise)
        nll_sum = self.head.loss_sum(hidden.reshape(-1, hidden.shape[-1]), targets)
        balance_sum = torch.stack([routing.balance_sum for routing in routings]).sum()
        z_sum = torch.stack([routing.z_sum for routing in routings]).sum()
        total = nll_sum + self.config.balance_coef * balance_sum + self.config.z_coef * z_sum
        stats = {
            "nll_sum": nll_sum.detach(),
            "balance_sum": balance_sum.detach(),
            "z_sum": z_sum.detach(),
            "tokens": torch.tensor(float(targets.numel()), device=targets.device),
            "expert_load": torch.stack([routing.load_E for routing in routings]),
            "router_logit_sum": torch.stack([routing.logit_sum_E for routing in routings]),
            "router_logit_sq_sum": torch.stack([routing.logit_sq_sum_E for routing in routings]),
        }
        return LossOut(total, float(targets.numel()), stats)

    @torch.no_grad()
    def absorb(self, stats: Mapping[str, Tensor]) -> None:
        """Take in the step's stats, summed over all workers: moves the routers' mean and deviation."""
        count = stats["tokens"]
        mean = stats["router_logit_sum"] / count
        variance = (stats["router_logit_sq_sum"] / count - mean.square()).clamp_(min=0.0)
        old = self.config.routing_ema
        self.router_mean.mul_(old).add_(mean, alpha=1.0 - old)
        self.router_std.mul_(old).add_(variance.sqrt(), alpha=1.0 - old)

    @torch.no_grad()
    def token_nll(self, tokens_BT1: Tensor) -> Tensor:
        """Negative log-likelihood of each next token in nats: [B, T + 1] -> [B, T], log-softmax in fp32."""
        hidden, _ = self.hidden_states(tokens_BT1[:, :-1], None)
        losses = [
            F.cross_entropy(self.head(row), target, reduction="none")
            for row, target in zip(hidden, tokens_BT1[:, 1:], strict=True)
        ]
        return torch.stack(losses)

    def new_cache(self, batch: int, capacity: int) -> KvCache:
        """An empty key-value cache for `batch` sequences of up to `capacity` tokens."""
        self._check_length(capacity)
        return KvCache(self.config, batch, capacity, self.embed.new_empty(0, dtype=self.compute_dtype))

    @torch.no_grad()
    def decode(self, tokens_BT: Tensor, cache: KvCache) -> Tensor:
        """Feed new tokens [B, T] after those in `cache`; logits of the last one, fp32 [B, V]."""
        length = tokens_BT.shape[1]
        x_BTh = F.embedding(tokens_BT, self.embed).to(self.compute_dtype)
        cos, sin = rope_tables(cache.length, length, self.config.head_dim, self.config.rope_theta, x_BTh)
        for index, block in enumerate(self.layers):
            assert isinstance(block, Block)
            x_BTh = block.decode(x_BTh, cos, sin, cache, index)
        cache.advance(length)
        logits: Tensor = self.head(self.final_norm(x_BTh[:, -1]))
        return logits

    def _check_length(self, length: int) -> None:
        if length > self.config.max_positions:
            raise ConfigError(
                f"{length} tokens are more than the model's {self.config.max_positions} positions",
                "shorten the sequences or raise max_positions",
            )

    def _routing_noise(
        self, step: int, sample_ids: Sequence[int], seed: int, length: int
    ) -> list[RoutingNoise] | None:
        """Noise of every layer, or None once the warm-up is over (a = min(step / W, 1))."""
        warmup = self.config.routing_warmup_steps
        if step >= warmup:
            return None
        shape = (self.config.layers, length, self.config.experts)
        drawn = [
            torch.randn(shape, generator=_sample_generator(seed, step, sample), device="cpu")
            for sample in sample_ids
        ]
        eps_LBTE = torch.stack(drawn, dim=1).to(self.router_mean.device)
        keep = step / warmup
        return [
            RoutingNoise(keep, self.router_mean[layer], self.router_std[layer], eps_LBTE[layer])
            for layer in range(self.config.layers)
        ]


def _sample_generator(seed: int, step: int, sample: int) -> torch.Generator:
    """A generator fixed by (seed, step, sample) and by nothing else."""
    digest = hashlib.blake2b(f"{seed}/{step}/{sample}".encode(), digest_size=8).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
