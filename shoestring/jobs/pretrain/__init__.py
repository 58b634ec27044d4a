"""Pre-training a mixture-of-experts language model on text."""

from shoestring.jobs.pretrain.config import PretrainConfig
from shoestring.jobs.pretrain.job import PretrainJob

__all__ = ["PretrainConfig", "PretrainJob"]
