"""One update from the pseudo-gradients of workers that took local steps (EDiT, arXiv 2412.07210).

A pseudo-gradient is what a worker has moved since the last synchronisation, backwards: last synchronised
less current, by layer. A layer of a worker that moved unusually far is left out; the others count by their
samples, and less the further they moved; the sum is clipped, and taken by SGD with Nesterov momentum.

Ours: the temperature is a multiple of the layer's median norm, and always set; where it is not, the released
code favours the largest norms, and a worker that was flagged gets nearly all the weight. Norms are per square
root of local steps, and weights by samples: by the clock some workers do more of both, and that is no fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shoestring.parallel.paro.units import default_units
from shoestring.train.config import EditConfig

REST = "rest"


def layers_of(
    model: nn.Module, names: Sequence[str], units: Sequence[nn.Module] | None
) -> dict[str, list[str]]:
    """Parameters by layer, in order; what stands in no unit is `rest`.

    Args:
        units: as in ParallelLayout; None: the elements of the model's ModuleLists.
    """
    chosen = {id(unit) for unit in (units if units is not None else default_units(model))}
    layers = [name for name, module in model.named_modules() if id(module) in chosen]
    found: dict[str, list[str]] = {}
    for name in names:
        layer = next((one for one in layers if name.startswith(f"{one}.")), REST)
        found.setdefault(layer, []).append(name)
    return found


class Surprise:
    """Says when a norm is unusual for this worker: a z-test against a moving mean and variance of each layer.

    Args:
        layers: how many.
    """

    def __init__(self, layers: int, config: EditConfig) -> None:
        self._config = config
        self._seen = 0
        self._mean = torch.zeros(layers, dtype=torch.float64)
        self._variance = torch.zeros(layers, dtype=torch.float64)

    def unusual(self, norms: Tensor) -> Tensor:
        """Which of these norms, float64 [layers], are too large to be believed; bool [layers].

        Those teach nothing. During the warm-up only what is not finite is.
        """
        finite = torch.isfinite(norms)
        flagged = ~finite
        if self._seen >= self._config.warmup:
            spread = self._variance.sqrt().clamp(min=torch.finfo(torch.float64).tiny)
            flagged |= (norms - self._mean) / spread > self._config.z_limit
        believed = ~flagged
        self._seen += 1
        rate = max(self._config.ewma, 1.0 / self._seen)  # plain averages until enough were seen
        gap = torch.where(believed, norms - self._mean, 0.0)
        self._mean += rate * gap
        self._variance = torch.where(
            believed, (1.0 - rate) * (self._variance + rate * gap.square()), self._variance
        )
        return flagged


def weights_of(norms: Tensor, flagged: Tensor, samples: Tensor, temperature: float) -> Tensor:
    """How much each worker's pseudo-gradient counts in each layer; sums to 1 over workers, or to 0 where no
    worker is believed: then the layer stays where it was.

    Args:
        norms: float64 [workers, layers], per square root of local steps.
        flagged: bool [workers, layers].
        samples: float64 [workers].
        temperature: in medians of a layer's norms; 0: by samples alone.

    Returns:
        float64 [workers, layers].
    """
    believed = ~flagged & (samples > 0)[:, None]
    raw = samples[:, None].expand_as(norms)
    if temperature > 0:
        kept = torch.where(believed, norms, torch.nan)
        scale = temperature * kept.nanmedian(dim=0).values
        least = torch.where(believed, norms, torch.inf).min(dim=0).values
        ratio = torch.where(scale > 0, (norms - least) / scale, torch.zeros_like(norms))
        raw = raw * torch.exp(-ratio)
    raw = torch.where(believed, raw, 0.0)
    total = raw.sum(dim=0)
    return torch.where(total > 0, raw / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


@torch.no_grad()
def outer_step(
    parameters: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    pseudo: Tensor,
    config: EditConfig,
) -> float:
    """Put a layer's parameters where the outer optimizer wants them, from where they were synchronised last.

    Args:
        parameters, anchors, moments: of the layer, by name: current, last synchronised, outer momentum.
        pseudo: the layer's weighted sum of pseudo-gradients, flat, in the order of `parameters`.

    Returns:
        Its norm before clipping.
    """
    norm = float(torch.linalg.vector_norm(pseudo))
    scale = min(1.0, config.clip_norm / norm) if config.clip_norm and norm > 0 else 1.0
    offset = 0
    for name, parameter in parameters.items():
        part = pseudo[offset : offset + parameter.numel()].view_as(parameter) * scale
        offset += parameter.numel()
        moments[name].mul_(config.outer_momentum).add_(part)
        parameter.copy_(anchors[name])
        parameter.sub_(part + config.outer_momentum * moments[name], alpha=config.outer_lr)
    return norm
