"""A decoder-only mixture-of-experts language model in the manner of Ling Lite and Plus (arXiv 2503.05139)."""

from shoestring.models.moe_lm.config import NAMED_CONFIGS, MoeConfig
from shoestring.models.moe_lm.model import LossOut, MoeLM

__all__ = ["NAMED_CONFIGS", "LossOut", "MoeConfig", "MoeLM"]
