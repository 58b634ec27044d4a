"""Children of a worker: born in milliseconds, told apart when they die, and none left behind."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pyarrow as pa
import pytest

from shoestring.base.clock import SystemClock
from shoestring.base.errors import FleetError
from shoestring.infer.births import LOAD, WRITE, End, Settings
from shoestring.infer.nursery import Kid, Nursery
from shoestring.infer.preload import wanted
from shoestring.infer.shared import Segments
from shoestring.infer.talk import Gone
from shoestring.infer.wire import Load, Loaded, Predict, Predicted, Raised, Ref, Up
from shoestring.models.moe_lm.config import MODEL_TYPE
from tests.infer.kidstages import Talk, live, make_job

CLOCK = SystemClock()


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[Segments]:
    made = Segments.make(least_bytes=0, shared=tmp_path)
    yield made
    made.close()


@pytest.fixture
def nursery(tmp_path: Path, segments: Segments) -> Iterator[Nursery]:
    made = Nursery.start(make_job(tmp_path, "double"), segments.folder, tmp_path, "w0", live=live)
    yield made
    made.close()


def ended(kid: Kid) -> bool:
    poll = select.poll()
    poll.register(kid.pidfd, select.POLLIN)
    return bool(poll.poll(60_000))


def gone(pid: int) -> bool:
    """Within a minute."""
    for _ in range(6000):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        CLOCK.sleep(0.01)
    return False


def test_children_of_all_roles_work_and_leave(nursery: Nursery, segments: Segments, tmp_path: Path) -> None:
    kids = [Talk(nursery.child(role, number)) for number, role in enumerate([LOAD, "stage:s", WRITE])]
    for kid in kids:
        up = kid.hear()
        assert isinstance(up, Up) and up.task == -1 and not up.streams and up.room == -1
    loaded = kids[0].ask(Load(1, ((10, 14), (2, 4)), "rows"))
    assert isinstance(loaded, Loaded) and loaded.rows == 6 and not loaded.errors
    assert (
        loaded.size_bytes == (segments.folder / "rows").stat().st_size > 0
        and loaded.cost.memory_bytes > 1 << 20
    )
    done = kids[1].ask(Predict(2, (Ref("rows", 4, 6), Ref("rows", 0, 1)), "answer"))
    assert isinstance(done, Predicted) and done.rows == 3 and done.counts == b"" and not done.errors
    assert segments.read("answer").column("twice").to_pylist() == [4, 6, 20]
    for kid in kids:
        kid.kid.close()
    for kid in kids:
        assert gone(kid.kid.pid)
    logs = {path.name for path in (tmp_path / "logs").iterdir()}
    assert logs == {"w0-nursery.log", "w0-load-0.log", "w0-stage-s-1.log", "w0-write-2.log"}


def test_failures_are_told_and_deaths_are_told_apart(
    nursery: Nursery, segments: Segments, tmp_path: Path
) -> None:
    loader = Talk(nursery.child(LOAD, 0))
    loader.hear()
    loader.ask(Load(1, ((0, 100),), "rows"))
    kid = Talk(nursery.child("stage:s", 0))
    kid.hear()

    def predict(number: int, task: int) -> Raised:
        reply = kid.ask(Predict(task, (Ref("rows", number, number + 1),), f"answer{task}"))
        assert isinstance(reply, Raised) and reply.task == task
        return reply

    failed = predict(90, 2)
    assert failed.kind == "stage" and failed.text == "ValueError: no 90, please: s3://***@bucket/x"
    assert failed.signature.startswith("ValueError at kidstages.py:") and "in double" in failed.detail
    assert "secret" not in failed.detail
    assert predict(93, 3).kind == "memory" and predict(96, 4).kind == "memory"
    left = predict(94, 5)
    assert left.kind == "stage" and left.text == "SystemExit: left"
    assert "said on stdout" in (tmp_path / "logs" / "w0-stage-s-0.log").read_text()
    alive = kid.ask(Predict(6, (Ref("rows", 1, 2),), "answer6"))
    assert isinstance(alive, Predicted), "it goes on after what its code raised"
    assert nursery.end_of(kid.kid.pid) == End(None)

    kid.line.send(Predict(7, (Ref("rows", 91, 92),), "answer7"))
    assert ended(kid.kid)
    end = nursery.end_of(kid.kid.pid)
    assert end.code == -signal.SIGSEGV and "SIGSEGV" in end.words
    with pytest.raises(Gone):
        for _ in range(60):
            kid.line.receive(1.0)

    hung = Talk(nursery.child("stage:s", 1))
    hung.hear()
    hung.line.send(Predict(8, (Ref("rows", 92, 93),), "answer8"))
    assert hung.line.receive(0.3) == []
    hung.kid.kill()
    assert ended(hung.kid) and nursery.end_of(hung.kid.pid).code == -signal.SIGKILL
    hung.kid.kill()
    assert nursery.end_of(1).code is None


def test_what_a_dead_child_had_started_is_ended_too(nursery: Nursery, segments: Segments) -> None:
    kid = Talk(nursery.child("stage:s", 0))
    kid.hear()
    segments.write("rows", pa.table({"n": [95]}))
    kid.line.send(Predict(1, (Ref("rows", 0, 1),), "answer"))
    assert ended(kid.kid) and nursery.end_of(kid.kid.pid).code == 3
    for _ in range(6000):
        if not _group(kid.kid.pid):
            break
        CLOCK.sleep(0.01)
    assert not _group(kid.kid.pid)


def _group(leader: int) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_a_stage_that_cannot_be_set_up_says_so_and_leaves(tmp_path: Path, segments: Segments) -> None:
    nursery = Nursery.start(make_job(tmp_path, "broken"), segments.folder, tmp_path, "w0", live=live)
    try:
        kid = Talk(nursery.child("stage:s", 0))
        raised = kid.hear()
        assert isinstance(raised, Raised) and raised.task == -1 and raised.kind == "stage"
        assert "cannot be set up" in raised.text and "load_stage" in raised.detail
        assert ended(kid.kid) and nursery.end_of(kid.kid.pid).code == 0
    finally:
        nursery.close()


def test_a_damaged_index_is_told_by_the_child_that_needs_it(tmp_path: Path, segments: Segments) -> None:
    payload = make_job(tmp_path, "double")
    Path(payload.index).write_bytes(b"nonsense")
    nursery = Nursery.start(payload, segments.folder, tmp_path, "w0", live=live)
    try:
        raised = Talk(nursery.child(LOAD, 0)).hear()
        assert isinstance(raised, Raised) and raised.task == -1 and "is damaged" in raised.text
        assert raised.todo == "remove it: it is made again"
    finally:
        nursery.close()


def test_closing_ends_all_children(nursery: Nursery) -> None:
    kids = [nursery.child(LOAD, number) for number in range(3)]
    nursery.close()
    nursery.close()
    assert all(ended(kid) for kid in kids)
    for kid in kids:
        kid.close()


@pytest.mark.faults
def test_a_killed_engine_leaves_nobody(tmp_path: Path, segments: Segments) -> None:
    payload = make_job(tmp_path, "double")
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            nursery = Nursery.start(payload, segments.folder, tmp_path, "w0", live=live)
            kids = [nursery.child(LOAD, 0), nursery.child("stage:s", 0)]
            for kid in kids:
                Talk(kid).hear()
            segments.write("rows", pa.table({"n": [92]}))
            Talk(kids[1]).line.send(Predict(1, (Ref("rows", 0, 1),), "answer"))
            os.write(write_fd, msgspec.json.encode([nursery.pid, *(kid.pid for kid in kids)]))
            signal.pause()
        finally:
            os._exit(1)
    pids = msgspec.json.decode(os.read(read_fd, 4096), type=list[int])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for fd in (read_fd, write_fd):
        os.close(fd)
    assert len(pids) == 3 and all(gone(one) for one in pids)


@pytest.mark.faults
def test_children_die_with_the_nursery_and_the_engine_is_told(nursery: Nursery) -> None:
    kid = nursery.child(LOAD, 0)
    os.kill(nursery.pid, signal.SIGKILL)
    assert ended(kid)
    with pytest.raises(FleetError, match="is gone"):
        nursery.child(LOAD, 1)


def test_a_fresh_interpreter_serves_where_there_are_threads(tmp_path: Path, segments: Segments) -> None:
    (tmp_path / "ours.py").write_text(
        "import torch\ndef halve(batch):\n    return {'half': torch.from_numpy(batch['n'].copy()) / 2}\n"
    )
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    payload = make_job(tmp_path, f"{tmp_path}/ours.py:halve")
    nursery = Nursery.start(payload, segments.folder, tmp_path, "w0", spawn=True)
    try:
        loader, stage = Talk(nursery.child(LOAD, 0)), Talk(nursery.child("stage:s", 0))
        assert isinstance(loader.hear(), Up) and isinstance(stage.hear(), Up)
        assert isinstance(loader.ask(Load(1, ((0, 3),), "rows")), Loaded)
        done = stage.ask(Predict(2, (Ref("rows", 0, 3),), "answer"))
        assert isinstance(done, Predicted) and segments.read("answer").column("half").to_pylist() == [
            0,
            0.5,
            1,
        ]
    finally:
        nursery.close()
        stop.set()
        thread.join()
    assert not (segments.folder / "nursery.msgpack").exists(), "what it was given is not left lying about"


def test_what_is_imported_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import os, scipy.stats\nfrom sklearn import svm\nimport helpers\n")

    def names(uses: str) -> set[str]:
        return wanted(Settings(make_job(tmp_path, uses), "", "", "w0", [str(tmp_path)]))

    ours = {"shoestring.infer.predicting"}
    assert names("mine:Model") - ours == {"scipy", "sklearn"} - set(sys.modules)
    assert "helpers" not in names(f"{tmp_path}/mine.py:Model") and "os" not in names("mine:Model")
    assert names("model.onnx") - ours == {"onnxruntime"} and names("nowhere.py:X") == ours
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert names(str(tmp_path)) - ours == {"torch", "transformers"}
    (tmp_path / "config.json").write_text(f'{{"model_type": "{MODEL_TYPE}"}}')
    assert names(str(tmp_path)) - ours == {"torch"} and names("neither/nor") == ours
