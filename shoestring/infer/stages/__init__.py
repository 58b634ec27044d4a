"""Kinds of stages: from settings to something that takes batches. Imports neither torch nor a model."""

from shoestring.infer.stages.loading import load_stage
from shoestring.infer.stages.looks import check_stage, kind_of

__all__ = ["check_stage", "kind_of", "load_stage"]
