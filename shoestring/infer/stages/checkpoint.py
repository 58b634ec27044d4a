"""A stage that is one of our checkpoints: it goes on with texts (source: ours)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shoestring.infer.batch import StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages.columns import options_of
from shoestring.infer.stages.devices import device_of
from shoestring.infer.stages.text import Codec, TextOptions, TextStream
from shoestring.infer.trained import text_model
from shoestring.models.moe_lm.serving import ServedMoe


class CheckpointOptions(TextOptions):
    """Options of a stage of kind `checkpoint`: those of text generation.

    Attributes:
        dtype: of activations; `auto`: as it was trained.
    """

    dtype: Literal["auto", "fp32", "bf16"] = "auto"


def make(config: StageConfig, context: StageContext) -> TextStream:
    """The stage; see `shoestring.infer.stages.loading`."""
    options = options_of(CheckpointOptions, config)
    dtype = None if options.dtype == "auto" else options.dtype
    model, tokenizer = text_model(Path(config.uses), device_of(context), dtype)

    def encode(text: str) -> list[int]:
        return [tokenizer.start_id, *tokenizer.encode(text.encode(errors="surrogatepass"))]

    codec = Codec(
        encode=encode,
        decode=lambda ids: tokenizer.decode(ids).decode(errors="replace"),
        stop=frozenset({tokenizer.end_id}),
    )
    return TextStream(ServedMoe(model), codec, options, context)
