"""Single measurements, each bounded in time: a device's arithmetic, a pair's link (source: ours)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
import torch

from shoestring.base.clock import Clock
from shoestring.jobs.probe.wire import Wire

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"fp32": torch.float32, "bf16": torch.bfloat16})
SMALLEST_MESSAGE_BYTES = 64 * 2**10
LARGEST_MESSAGE_BYTES = 16 * 2**20
REPEATS = 3
PINGS = 25
BULK_MESSAGES = 2
_SMALLEST_PRODUCT = 256
_LARGEST_PRODUCT = {"cpu": 1024, "cuda": 8192}


class LinkRate(msgspec.Struct, frozen=True):
    """A link between two ranks: bytes/s each way while both send, and seconds of a small message one way."""

    bytes_per_s: float
    latency_s: float


def compute_rate(dtype: torch.dtype, device: torch.device, span_s: float, clock: Clock) -> float:
    """FLOP/s of square products that are large enough to matter: median of `REPEATS` spans.

    The mean over a span, not the best product in it: who shares a core gets what is left of it.
    """
    edge = _SMALLEST_PRODUCT
    while True:
        left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        _multiply(left, right, 1)  # the first one of a size pays for threads and kernels
        began_s = clock.now()
        _multiply(left, right, 1)
        took_s = clock.now() - began_s
        if took_s > span_s / 8 or edge >= _LARGEST_PRODUCT[device.type]:
            break
        edge *= 2
    batch = max(1, int(span_s / 4 / max(took_s, 1e-6)))
    return statistics.median(
        2.0 * edge**3 / _product_s(left, right, batch, span_s, clock) for _ in range(REPEATS)
    )


def _product_s(left: torch.Tensor, right: torch.Tensor, batch: int, span_s: float, clock: Clock) -> float:
    """Mean seconds of one product, over `span_s` at least."""
    products, began_s = 0, clock.now()
    while products == 0 or clock.now() - began_s < span_s:
        _multiply(left, right, batch)
        products += batch
    return max(clock.now() - began_s, 1e-9) / products


def _multiply(left: torch.Tensor, right: torch.Tensor, times: int) -> None:
    for _ in range(times):
        product = left @ right
    float(product[0, 0])  # waits for the device


def link_rate(wire: Wire, peer: int, span_s: float, clock: Clock) -> LinkRate:
    """Rate and latency between this rank and `peer`, which calls this, too; both get the same answer.

    Messages double from 64 KiB until one exchange takes `span_s` or they have 16 MiB, so that a slow link
    costs little time; then the best of `REPEATS` exchanges back to back: others' work only adds time. What a
    shaped link lets pass in a burst is used up by the growth.
    """
    latency_s = _latency_s(wire, peer, clock)
    size_bytes = SMALLEST_MESSAGE_BYTES
    while True:
        buffers = torch.full((2, size_bytes), 1, dtype=torch.uint8, device=wire.device)
        # One exchange that met a busy core must not end the growth.
        took_s = min(_timed_exchange(wire, peer, buffers, clock) for _ in range(2))
        if took_s >= span_s or size_bytes >= LARGEST_MESSAGE_BYTES:
            break
        # Far from the span, a link is fast enough to skip sizes.
        size_bytes = min(LARGEST_MESSAGE_BYTES, size_bytes * (4 if took_s < span_s / 8 else 2))
    spans_s = [took_s, *(_timed_exchange(wire, peer, buffers, clock) for _ in range(REPEATS - 1))]
    return LinkRate(size_bytes / min(spans_s), latency_s)


def bulk_s(wire: Wire, peer: int, size_bytes: int, clock: Clock) -> float:
    """Seconds in which `size_bytes` go each way, in `BULK_MESSAGES` parts; the longer of both times."""
    buffers = torch.full((2, max(1, size_bytes // BULK_MESSAGES)), 1, dtype=torch.uint8, device=wire.device)
    began_s = clock.now()
    for _ in range(BULK_MESSAGES):
        wire.exchange(peer, buffers[0], buffers[1])
    return max(_swap(wire, peer, clock.now() - began_s), 1e-9)


def copy_rate(device: torch.device, span_s: float, clock: Clock) -> LinkRate:
    """Bytes/s of copying memory, and the time to copy 8 bytes: what stands for a link where there is one
    rank."""
    source = torch.zeros(LARGEST_MESSAGE_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies, began_s = 0, clock.now()
    while copies == 0 or clock.now() - began_s < span_s:
        target.copy_(source)
        int(target[0])
        copies += 1
    rate = LARGEST_MESSAGE_BYTES * copies / max(clock.now() - began_s, 1e-9)
    word, spans_s = torch.zeros(2, dtype=torch.int64, device=device), []
    for _ in range(PINGS):
        began_s = clock.now()
        word[0].copy_(word[1])
        spans_s.append(clock.now() - began_s)
    return LinkRate(rate, max(sorted(spans_s)[PINGS // 4], 1e-9))


def _timed_exchange(wire: Wire, peer: int, buffers: torch.Tensor, clock: Clock) -> float:
    """Seconds of one exchange, the longer of both sides' times: both decide by the same number."""
    began_s = clock.now()
    wire.exchange(peer, buffers[0], buffers[1])
    return max(_swap(wire, peer, clock.now() - began_s), 1e-9)


def _swap(wire: Wire, peer: int, mine: float) -> float:
    """The larger of this rank's and the peer's number."""
    numbers = torch.tensor([[mine], [0.0]], dtype=torch.float64, device=wire.device)
    wire.exchange(peer, numbers[0], numbers[1])
    return float(numbers.max())


def _latency_s(wire: Wire, peer: int, clock: Clock) -> float:
    """Half the time there and back of 8 bytes, as the lower rank sees it; lower quartile: others only add."""
    word = torch.zeros(1, dtype=torch.int64, device=wire.device)
    spans_s = []
    for _ in range(PINGS):
        began_s = clock.now()
        if wire.rank < peer:
            wire.send(peer, word)
            wire.receive(peer, word)
        else:
            wire.receive(peer, word)
            wire.send(peer, word)
        spans_s.append(clock.now() - began_s)
    mine_s = sorted(spans_s)[PINGS // 4] / 2 if wire.rank < peer else 0.0
    return _swap(wire, peer, mine_s)
