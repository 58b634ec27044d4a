"""Entry of a worker in a fresh interpreter: `python -m shoestring.fleet.spawned FILE` (source: ours)."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from shoestring.base.clock import SystemClock
from shoestring.fleet.channel import UnixChannel, WorkerContext
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.launch import load_entry
from shoestring.fleet.names import number_of
from shoestring.fleet.processes import die_with_parent, run_body


def main(arguments: list[str]) -> int:
    """Read the file that the supervisor wrote, and work."""
    die_with_parent(int(os.environ["SHOESTRING_PARENT"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return run_body(lambda _: _work(Path(arguments[0])), int(os.environ["SHOESTRING_WORDS_FD"]))


def _work(path: Path) -> int:
    about = json.loads(path.read_text())
    path.unlink()
    socket_path = Path(about["socket"])
    context = WorkerContext(
        name=about["name"],
        incarnation=about["incarnation"],
        open_channel=lambda: UnixChannel(socket_path),
        clock=SystemClock(),
        config=MemberConfig.model_validate(about["members"]),
        run_dir=Path(about["run_dir"]),
        payload=bytes.fromhex(about["payload"]),
        device=about["device"],
        device_index=number_of(about["name"]),
        threads=about["threads"],
    )
    load_entry(about["entry"])(context)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
