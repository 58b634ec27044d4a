"""What a child tells of its work: what it took, and what went wrong (source: ours)."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import resource
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

from shoestring.base.clock import Clock
from shoestring.base.errors import ConfigError, ShoestringError, SinkError, without_passwords
from shoestring.infer.wire import Cost, Raised

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate memory")
"""How libraries without a MemoryError say it: torch on CPU and GPU, CUDA, ONNX Runtime."""
_NO_ROOM = (errno.ENOMEM, errno.ENOSPC)
_LINE = 500
_DETAIL = 16_000
_NOT_USERS = tuple(
    {
        str(Path(__file__).parents[1]),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
    }
)
# NVIDIA; its small boards; Linux in Windows; AMD
_GPU_FILE = re.compile(r"/dev/(nvidia\d|nvhost|nvmap|dxg|kfd|dri/renderD)")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Seconds and CPU seconds between looks.

    Args:
        gpu: whether this process was given one.
    """

    def __init__(self, clock: Clock, gpu: bool = False) -> None:
        self._clock = clock
        self._gpu = False if gpu else None
        self._at_s, self._cpu_s = clock.now(), cpu_s()

    def start(self) -> None:
        """Count from here."""
        self._at_s, self._cpu_s = self._clock.now(), cpu_s()

    def cost(self) -> Cost:
        """Since then."""
        took_s, of_cpu_s = self._clock.now() - self._at_s, cpu_s() - self._cpu_s
        if self._gpu is False:  # once it has one it keeps it
            self._gpu = any(holds_gpu(Path(f"/proc/{pid}/fd")) for pid in (os.getpid(), *_descendants()))
        return Cost(took_s, of_cpu_s, memory_bytes(), self._gpu)


def cpu_s() -> float:
    """Seconds of CPU that this process has used, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes(pid: int | None = None) -> int:
    """Resident memory of a process (None: this one), without pages that others have too: those are rows in
    shared memory, and libraries. 0: it has ended, or this system has no /proc."""
    try:
        fields = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def holds_gpu(files: Path) -> bool:
    """Whether a process has opened a GPU, by whatever library.

    Args:
        files: a folder of links to what it has open, `/proc/PID/fd`.
    """
    try:
        links = list(files.iterdir())
    except OSError:  # it has ended
        return False
    for link in links:
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if _GPU_FILE.match(os.readlink(link)):
                return True
    return False


def _descendants() -> list[int]:
    """Processes that this one has started, and theirs: some engines compute in one of their own."""
    with contextlib.suppress(psutil.Error):
        return [one.pid for one in psutil.Process().children(recursive=True)]
    return []


def raised(task: int, error: BaseException, otherwise: str) -> Raised:
    """What went wrong with a task, for the engine.

    Args:
        otherwise: its kind where the error does not say: `stage` or `other`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    users = [one for one in frames if not one.filename.startswith((*_NOT_USERS, "<"))]
    place = next(reversed(users or frames), None)
    where = f" at {Path(place.filename).name}:{place.lineno}" if place is not None else ""
    name = type(error).__name__
    ours = isinstance(error, ShoestringError)
    said = error.what if isinstance(error, ShoestringError) else str(error)
    text = " ".join(said.split())
    text = text if ours else f"{name}: {text}" if text else name
    return Raised(
        task=task,
        kind=kind_of(error, otherwise),
        signature=f"{name}{where}",
        text=without_passwords(text)[:_LINE],
        detail=without_passwords("".join(traceback.format_exception(error)))[-_DETAIL:],
        todo=error.todo if isinstance(error, ShoestringError) else "",
    )


def kind_of(error: BaseException, otherwise: str) -> str:
    """`memory`, `config`, `sink`, or what it is otherwise."""
    if isinstance(error, ShoestringError):
        return (
            "config"
            if isinstance(error, ConfigError)
            else "sink"
            if isinstance(error, SinkError)
            else otherwise
        )
    no_room = isinstance(error, OSError) and error.errno in _NO_ROOM
    text = str(error).lower() if isinstance(error, RuntimeError | OSError) else ""
    said = any(words in text for words in OUT_OF_MEMORY)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or no_room or said:
        return "memory"
    return otherwise


def let_go(out_of_memory: bool) -> None:
    """After a failure: what the failed work still holds."""
    gc.collect()
    torch = sys.modules.get("torch")
    if out_of_memory and torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def closed(close: Callable[[], object]) -> None:
    """Close something that may be broken: what goes wrong is for the log only."""
    with contextlib.suppress(KeyboardInterrupt):
        try:
            close()
        except Exception:  # noqa: BLE001  a user's code may raise anything
            traceback.print_exc()
