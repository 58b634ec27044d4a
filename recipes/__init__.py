"""Recipes: functions that return a full, typed configuration; each is also a test."""

from collections.abc import Mapping
from types import MappingProxyType

RECIPES: Mapping[str, str] = MappingProxyType(
    {
        "pretrain": "recipes.pretrain:pretrain",
        "pretrain-long": "recipes.pretrain:pretrain_long",
        "demo": "recipes.pretrain:demo",
    }
)
