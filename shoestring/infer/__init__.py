"""Runs trained models: decoding with a KV cache, batch inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoestring.infer.pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """`Pipeline`, once somebody wants it: it loads what a job needs."""
    if name == "Pipeline":
        from shoestring.infer.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
