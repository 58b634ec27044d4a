"""Causal language models of Hugging Face's transformers, run over ragged batches through its interface for
attention functions (source: ours).

Example: `Continuous(HuggingFaceRagged(model), cache_tokens=8192, sequences=32, stop=[2])`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from shoestring.base.errors import ConfigError
from shoestring.infer.arena import BLOCK, Arena, Decode, Prefill, causal
from shoestring.infer.segments import Span
from shoestring.models.ragged import Attend, LayerShape, RaggedShape

NAME = "shoestring_ragged"
"""Our attention, as transformers knows it."""
_PROBE = 12  # tokens on which ours and the model's own attention are compared
_OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class HuggingFaceRagged:
    """A causal model of transformers; see `shoestring.models.ragged.Ragged`.

    Args:
        model: in evaluation mode, on its device. Its attention is replaced.

    Raises:
        ConfigError: its attention is of a kind that ours is not: it knows no interface for attention
            functions, looks at a window of tokens only, or its scores come out otherwise (which is tried).
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        if model.config._attn_implementation == NAME:  # it was taken over before
            model.set_attn_implementation("sdpa")
        self._own = model.config._attn_implementation
        config = model.config.get_text_config()
        tokens = torch.arange(_PROBE, device=model.device) % config.vocab_size
        with torch.no_grad():
            wanted = model(tokens[None], use_cache=False).logits[0].float()
        AttentionInterface.register(NAME, _attention)
        notes = _Notes()
        try:
            model.set_attn_implementation(NAME)
            positions = torch.arange(_PROBE, device=model.device)
            self._run(tokens, positions, positions, notes)
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            raise self._unfit(f"it cannot be run with our attention ({error})") from error
        self._shape = RaggedShape(
            layers=tuple(notes.shapes[layer] for layer in sorted(notes.shapes)),
            positions=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            dtype=notes.dtype,
            device=model.device,
        )
        if sorted(notes.shapes) != list(range(config.num_hidden_layers)):
            raise self._unfit(f"{len(notes.shapes)} of its {config.num_hidden_layers} layers have attention")
        self._compare(tokens, wanted)

    @property
    def shape(self) -> RaggedShape:
        """What a cache for it has to hold."""
        return self._shape

    def ragged(self, tokens_N: Tensor, positions_N: Tensor, last_B: Tensor, attend: Attend) -> Tensor:
        """Tokens of many sequences, one sequence after the other; fp32 logits [B, V] of those at `last_B`."""
        return self._run(tokens_N, positions_N, last_B, attend)

    def _run(self, tokens_N: Tensor, positions_N: Tensor, last_B: Tensor, attend: Attend) -> Tensor:
        with torch.no_grad():
            out = self._model(
                input_ids=tokens_N[None],
                position_ids=positions_N[None],
                use_cache=False,
                logits_to_keep=last_B,
                shoestring_attend=attend,
            )
        logits: Tensor = out.logits[0].float()
        return logits

    def _compare(self, tokens: Tensor, wanted: Tensor) -> None:
        """The same scores from a prompt and single tokens in our cache as from the whole at once."""
        arena = Arena(self._shape, 1)
        span = [Span(0, 1)]
        begin = _PROBE - 2
        assert _PROBE <= BLOCK
        places = torch.arange(_PROBE, device=tokens.device)
        last = torch.tensor([begin - 1], device=tokens.device)
        rows = [self._run(tokens[:begin], places[:begin], last, Prefill.of(arena, span, [begin]))]
        for place in range(begin, _PROBE):
            one = slice(place, place + 1)
            attend = Decode.of(arena, span, [place + 1])
            rows.append(self._run(tokens[one], places[one], torch.zeros_like(last), attend))
        found, wanted = torch.cat(rows), wanted[begin - 1 :]
        off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
        if not off <= _TOLERANCE[self._shape.dtype]:
            raise self._unfit(f"its scores differ by {off:.2%} when tokens come one at a time")

    def _unfit(self, why: str) -> ConfigError:
        self._model.set_attn_implementation(self._own)
        return ConfigError(
            f"{type(self._model).__name__} cannot be run by our generator: {why}",
            "set the stage's options.engine to `transformers`",
        )


class _Notes:
    """Attention of one whole sequence that notes the shapes of what it is given."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.dtype = torch.float32

    def __call__(self, layer: int, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, scale: float) -> Tensor:
        self.shapes[layer] = LayerShape(k_NGD.shape[1], k_NGD.shape[2], v_NGD.shape[2])
        self.dtype = k_NGD.dtype
        return causal(q_NHD, k_NGD, v_NGD, scale)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shoestring_attend: Attend | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' form of attention: query [1, H, N, D], key and value [1, G, N, D] -> [1, N, H, D].

    Raises:
        ValueError: the model asks for what ours does not do.
    """
    other = [name for name in _OTHER_ATTENTION if name in more and more[name] is not None]
    if other or attention_mask is not None:
        raise ValueError(f"its attention has {', '.join(other) or 'a mask of its own'}")
    if shoestring_attend is None:
        raise ValueError("the model does not hand arguments on to its attention")
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    mixed = shoestring_attend(
        module.layer_idx, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scale
    )
    return mixed[None], None
