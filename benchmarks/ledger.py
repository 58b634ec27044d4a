"""Durable lease+done pairs per second through the local transport, and the size of a large ledger.

A client asks for a lease, waits for the answer, reports it done, waits for the answer, and again.
Every answer comes after the commit that makes it durable. Latency is that of a whole pair.
"""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import tempfile
from array import array
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.common import arguments, finish, table
from shoestring.base.clock import SystemClock
from shoestring.data.ledger import Ledger, LedgerSpec
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.frames import FrameReader, pack_frame
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.fleet.processes import Child, fork_child, raise_file_limit

SAMPLES = 1_000_000_000
SHARD = 1_000
CLIENTS = (1, 64, 1000)
PROCESSES = 2
WARM_S = 1.0
FRAGMENTS = 4_000


class Client:
    """One synthetic client: a connection and where it stands."""

    def __init__(self, path: Path, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.name = name
        self.reader = FrameReader()
        self.requests = 0
        self.began_s = 0.0

    def ask(self) -> None:
        """Begin a pair."""
        self.requests += 1
        self.began_s = perf_counter()
        self.socket.send(pack_frame(m.encode(m.Lease(self.name, self.requests, SHARD))))

    def answered(self) -> bool:
        """Take an answer; whether it ends a pair."""
        for body in self.reader.feed(self.socket.recv(4096)):
            reply = m.decode_reply(body)
            if isinstance(reply, m.Leased):
                assert reply.ranges, "the ledger is used up"
                self.socket.send(pack_frame(m.encode(m.Done(self.name, reply.lease_id))))
            else:
                assert isinstance(reply, m.DoneReply) and reply.outcome == "counted", reply
                return True
        return False


def drive(path: Path, first: int, count: int, warm_s: float, span_s: float, out: Path) -> int:
    """The body of a client process: keep `count` clients busy; write the latencies of pairs."""
    raise_file_limit()
    selector = selectors.DefaultSelector()
    clients = [Client(path, f"c{first + i}") for i in range(count)]
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.ask()
    latencies, begin_s = array("d"), perf_counter() + warm_s
    while (now := perf_counter()) < begin_s + span_s:
        for key, _ in selector.select(0.1):
            if key.data.answered():
                if now >= begin_s:
                    latencies.append(perf_counter() - key.data.began_s)
                key.data.ask()
    out.write_bytes(latencies.tobytes())
    return 0


def _drive(path: Path, first: int, count: int, span_s: float, out: Path, _: int) -> int:
    return drive(path, first, count, WARM_S, span_s, out)


def measure(clients: int, span_s: float) -> dict[str, float]:
    """Pairs per second and latencies (ms) with so many clients."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        spec = LedgerSpec(samples=SAMPLES, shard_size=SHARD)
        host = LocalHost(Launch(directory, FleetConfig(), spec, "builtins:print"), SystemClock())
        try:
            host.start_coordinator(first=True)
            parts = [len(range(i, clients, PROCESSES)) for i in range(PROCESSES)]
            children: list[Child] = []
            for i, part in enumerate(parts):
                if part:
                    work = partial(
                        _drive, host.socket_path, i * 10_000, part, span_s, directory / f"{i}.latencies"
                    )
                    children.append(fork_child(work, directory / f"client{i}.log"))
            for child in children:
                os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
                ended = child.poll()
                assert ended is not None and ended.code == 0, ended
        finally:
            host.close()
        latencies = array("d")
        for out in directory.glob("*.latencies"):
            latencies.frombytes(out.read_bytes())
    ordered = sorted(latencies)
    return {
        "ops_per_s": len(ordered) / span_s,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
    }


def size() -> dict[str, float]:
    """A ledger of 10^9 samples in 10^6 shards, half done, with thousands of leases and fragments."""
    spec = LedgerSpec(samples=SAMPLES, shard_size=SHARD)
    with tempfile.TemporaryDirectory() as name:
        url = f"sqlite:///{name}/ledger.db"
        ledger = DurableLedger.open(url, spec)
        half = ledger.lease(0.0, "all", SAMPLES // 2)
        assert half is not None
        ledger.complete(0.0, half.lease_id, "all")
        leases = [ledger.lease(0.0, f"w{i % 1000}", SHARD) for i in range(2 * FRAGMENTS)]
        for lease in leases[::2]:
            assert lease is not None
            ledger.release(lease.lease_id)
        ledger.commit()
        data = ledger.snapshot_bytes()
        began_s = perf_counter()
        restored = Ledger.restore(spec, data)
        restore_s = perf_counter() - began_s
        assert restored.counts() == ledger.counts()
        ledger.close()
        began_s = perf_counter()
        reopened = DurableLedger.open(url, spec)
        reopen_s = perf_counter() - began_s
        assert reopened.counts() == restored.counts()
        reopened.close()
    return {"snapshot_bytes": len(data), "restore_s": restore_s, "reopen_s": reopen_s}


def main() -> None:
    """Measure, print, record."""
    quick = arguments(__doc__ or "").quick
    repeats, span_s = (1, 5.0) if quick else (3, 10.0)
    samples: dict[str, list[dict[str, float]]] = {str(clients): [] for clients in CLIENTS}
    for _ in range(repeats):
        for clients in CLIENTS:
            samples[str(clients)].append(measure(clients, span_s))
    sizes = [size() for _ in range(repeats)]
    best = {key: {f: statistics.median(s[f] for s in runs) for f in runs[0]} for key, runs in samples.items()}
    table(
        ["clients", "pairs/s", "p50 ms", "p99 ms"],
        [[k, f"{v['ops_per_s']:.0f}", f"{v['p50_ms']:.2f}", f"{v['p99_ms']:.2f}"] for k, v in best.items()],
    )
    mid = {f: statistics.median(s[f] for s in sizes) for f in sizes[0]}
    print(
        f"10^9 samples, half done, {FRAGMENTS} leases and fragments: "
        f"snapshot {mid['snapshot_bytes']:.0f} bytes, "
        f"restored in {mid['restore_s']:.3f} s, reopened in {mid['reopen_s']:.3f} s"
    )
    finish(
        "ledger",
        {
            "quick": quick,
            "span_s": span_s,
            "repeats": repeats,
            "samples": SAMPLES,
            "shard": SHARD,
            "client_processes": PROCESSES,
            "fragments": FRAGMENTS,
        },
        {"pairs": samples, "sizes": sizes},
        {
            "durable_ops_per_s_1": round(best["1"]["ops_per_s"], 1),
            "durable_ops_per_s_64": round(best["64"]["ops_per_s"], 1),
            "p99_ms_64": round(best["64"]["p99_ms"], 3),
            "durable_ops_per_s_1000": round(best["1000"]["ops_per_s"], 1),
            "p99_ms_1000": round(best["1000"]["p99_ms"], 3),
            "snapshot_bytes_1e9": int(mid["snapshot_bytes"]),
            "restore_s_1e9": round(mid["restore_s"], 4),
        },
    )


if __name__ == "__main__":
    main()
