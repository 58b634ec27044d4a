"""Which ring for which message (source: ours, measured: docs/design/rings.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout

Method = Literal["auto", "flat", "sequential", "overlap", "direct", "backend"]
Operation = Literal["all_gather", "reduce_scatter", "all_reduce"]
Scope = Literal["world", "group", "peers"]
METHODS: tuple[Method, ...] = ("auto", "flat", "sequential", "overlap", "direct", "backend")
# Up to here the hops' latencies weigh more than their bytes.
SMALL_BYTES = 64 * 2**10


@dataclass(frozen=True)
class Request:
    """What is to be done.

    Attributes:
        size_bytes: of the whole tensor, all blocks together.
        one_host: all ranks of the scope share a host and its loopback: no link is slow.
    """

    operation: Operation
    scope: Scope
    size_bytes: int
    layout: Layout
    one_host: bool


@dataclass(frozen=True)
class Choice:
    """How it is done, and why."""

    method: Method
    reason: str


def choose(request: Request) -> Choice:
    """The rule behind `auto`. A planner that has measured the links brings its own: `Rings(choose=...)`."""
    if request.one_host and request.operation == "all_reduce":
        return Choice("backend", "all ranks are on one host: no link is slow, the backend's own is quickest")
    one_level = 1 in (request.layout.count, request.layout.group_size)
    if request.scope == "world" and one_level and request.operation == "all_reduce":
        return Choice("backend", "one level: as many bytes either way, the backend's own costs less")
    if request.scope != "world" or one_level:
        return Choice("flat", "one level only")
    if request.one_host:
        return Choice("flat", "all ranks are on one host: no link is slow, one ring has the fewest steps")
    if request.size_bytes <= SMALL_BYTES and request.operation == "all_reduce":
        return Choice("backend", f"up to {SMALL_BYTES} bytes the number of steps decides")
    return Choice("overlap", "two levels, and a message that is long against the latency of a step")


def check_method(method: Method, request: Request) -> Method:
    """The method as it can be run: without two levels the hierarchical ones are the flat ring.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in METHODS or method == "auto":
        raise ConfigError(f"there is no ring method {method!r}", f"take one of {', '.join(METHODS)}")
    two_levels = request.scope == "world" and 1 not in (request.layout.count, request.layout.group_size)
    return method if two_levels or method in ("direct", "backend") else "flat"
