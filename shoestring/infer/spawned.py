"""Entry of a nursery in a fresh interpreter: `python -m shoestring.infer.spawned FILE` (source: ours).

Its end of the socket pair is standard input.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from shoestring.fleet.processes import die_with_parent
from shoestring.infer.births import Settings
from shoestring.infer.nursery import run


def main(arguments: list[str]) -> int:
    """Read the file that the worker wrote, and bear children."""
    die_with_parent(int(os.environ["SHOESTRING_PARENT"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = Path(arguments[0])
    settings = msgspec.msgpack.decode(path.read_bytes(), type=Settings)
    path.unlink()
    end = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.path += [one for one in settings.path if one not in sys.path]
    return run(settings, end, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
