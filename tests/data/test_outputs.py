"""Exactly once, whoever dies when: the whole protocol, stopped at each of its steps and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.base.errors import LedgerError, SinkError
from shoestring.data.ledger import LedgerSpec
from shoestring.data.output_state import Output, Staged
from shoestring.data.outputs import MANIFEST_EVERY, Outputs, Staging
from shoestring.data.sink_config import SinkConfig
from shoestring.data.sink_files import files_of_sink
from shoestring.data.sinks import MANIFEST, owner_of
from shoestring.data.store import DurableLedger
from shoestring.data.stores import MemoryStore
from tests.data.output_rig import ROWS, SCHEMA, Died, Mortal, output_of, shard, stage, work


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Only processes die here, no machine: nothing needs to reach the disk, which takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def whole(sink: SinkConfig) -> None:
    """All rows are there, once, with their images, and the manifest says so."""
    files = files_of_sink(sink.path)
    manifest = json.loads(files.read(MANIFEST) or b"")
    table = found(sink)
    assert sorted(table.column("row").to_pylist()) == list(range(ROWS))
    assert (
        manifest["state"] == "finished" and manifest["rows"] == ROWS and manifest["facts"] == {"rows": ROWS}
    )
    assert manifest["failed"] == 3 and manifest["errors"] == {"bad: N": 3}
    assert set(manifest["columns"]) == {"row", "image", "error"}
    for entry in manifest["files"]:
        data = files.read(entry["name"])
        assert data is not None and hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert len(data) == entry["size_bytes"]
    visible = {name for name in files.listed() if name[0] not in "_."}
    assert visible == {entry["name"] for entry in manifest["files"]}
    assert not [name for name in files.listed() if name.startswith(".")], "nothing is left of staging"
    if sink.format == "images":
        for number, name in zip(
            table.column("row").to_pylist(), table.column("image").to_pylist(), strict=True
        ):
            assert files.read(name) == b"%d" % number


def found(sink: SinkConfig) -> pa.Table:
    """What a reader of the folder sees."""
    if not sink.path.startswith("memory://"):
        return ds.dataset(sink.path).to_table()
    files = files_of_sink(sink.path)
    names = [name for name in files.listed() if name[0] not in "_."]
    tables = [pa.parquet.read_table(pa.BufferReader(files.read(name) or b"")) for name in names]
    return pa.concat_tables(tables) if tables else pa.table({"row": pa.array([], pa.int64())})


def once_at_most(sink: SinkConfig, store: MemoryStore) -> None:
    """At any time: only whole files, only rows that are committed, none of them twice."""
    if not files_of_sink(sink.path).listed():
        return
    table = found(sink)
    seen = table.column("row").to_pylist() if table.num_columns else []
    assert len(seen) == len(set(seen))
    committed = DurableLedger.open(store, LedgerSpec(samples=ROWS, shuffle="none")).outputs()
    assert set(seen) <= {at for one in committed for start, stop in one.ranges for at in range(start, stop)}


def places(tmp_path: Path, kind: str) -> Iterator[tuple[int, SinkConfig]]:
    number = 0
    while True:
        root = str(tmp_path) if kind != "memory" else f"memory://outputs{tmp_path}"
        style = "images" if kind == "images" else "parquet"
        yield number, SinkConfig(path=f"{root}/{kind}-{number}", format=style)  # type: ignore[arg-type]
        number += 1


@pytest.mark.parametrize("kind", ["local", "images", "memory"])
def test_a_process_may_die_at_every_point(tmp_path: Path, kind: str) -> None:
    for point, sink in places(tmp_path, kind):
        store = MemoryStore()
        mortal = Mortal(files_of_sink(sink.path), point)
        try:
            work(sink, store, mortal)
            break
        except Died:
            once_at_most(sink, store)
        work(sink, store, files_of_sink(sink.path))
        whole(sink)
    whole(sink)
    assert point > 50, "there are many points"


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60), min_size=2, max_size=6))
def test_processes_may_die_again_and_again(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[int]
) -> None:
    sink = SinkConfig(path=str(tmp_path_factory.mktemp("again") / "out"), format="images")
    store = MemoryStore()
    for die_at in deaths:
        try:
            work(sink, store, Mortal(files_of_sink(sink.path), die_at))
        except Died:
            once_at_most(sink, store)
    work(sink, store, files_of_sink(sink.path))
    whole(sink)
    before = sorted(os.listdir(sink.path))
    work(sink, store, files_of_sink(sink.path))
    whole(sink)
    assert sorted(os.listdir(sink.path)) == before


@pytest.mark.faults
def test_real_processes_killed_between_any_two_operations(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"))
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    points = [0, 3, 7, 11, 14, 16, 17, 18, 19, 21, 26, 31, 200]
    for point in points:
        child = os.fork()
        if child == 0:
            try:
                _life(sink, url, point)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or os.waitstatus_to_exitcode(status) == 0
        if os.path.exists(sink.path):
            rows = ds.dataset(sink.path).to_table()
            seen = rows.column("row").to_pylist() if rows.num_columns else []
            assert len(seen) == len(set(seen))
    assert not killed
    whole(sink)


def _life(sink: SinkConfig, url: str, point: int) -> None:
    class Killed(Mortal):
        def _point(self) -> None:
            if self.points == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.points += 1

    work(sink, url, Killed(files_of_sink(sink.path), point))  # type: ignore[arg-type]
    os._exit(0)


# --- taking over -----------------------------------------------------------------------------------------


def test_what_was_done_is_told(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"))
    staging = Staging(sink, "job")
    assert Outputs(sink, "job").open([]) == []
    first, second = (output_of(n, stage(staging, n, range(4 * n, 4 * n + 4)), 4 * n) for n in (0, 1))
    stage(staging, 2, range(8, 12))
    assert Outputs(sink, "job").open([first], sweep=False) == [
        "1 files were committed and not published: done"
    ]
    assert Outputs(sink, "job").open([first, second]) == [
        "1 files were committed and not published: done", "1 files were staged and never committed: removed",
    ]  # fmt: skip
    assert Outputs(sink, "job").open([first, second]) == []
    assert sorted(os.listdir(sink.path)) == [MANIFEST, first.name, second.name]


def test_workers_of_one_lease_do_not_meet_and_a_late_one_takes_its_own_away(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"), format="images")
    staging = Staging(sink, "job")
    same = [stage(staging, 1, range(4), who) for who in ("w0.1", "w0.1", "w1/ü.2")]
    assert len({one.name for one in same}) == 3
    outputs = Outputs(sink, "job")
    outputs.open([], sweep=False)
    outputs.publish(output_of(1, same[1], 0))
    for late in (same[0], same[2], same[2]):
        staging.discard(late)
    assert os.listdir(tmp_path / "out" / ".staging-job") == ["schema.json"]
    outputs.finish({})
    table = ds.dataset(sink.path).to_table()
    assert [(tmp_path / "out" / name).read_bytes() for name in table.column("image").to_pylist()] == [
        b"0", b"1", b"2", b"3"
    ]  # fmt: skip


def test_what_is_staged_is_durable_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = SinkConfig(path=str(tmp_path / "a" / "out"), format="images")
    synced: list[tuple[str, int]] = []

    def sync(number: int) -> None:
        path = os.readlink(f"/proc/self/fd/{number}")
        synced.append((path, os.stat(path).st_size if os.path.isfile(path) else len(os.listdir(path))))

    monkeypatch.setattr(os, "fsync", sync)
    staged = stage(Staging(sink, "job"), 1, range(4))
    aside = f"{sink.path}/.staging-job"
    images = f"{aside}/{staged.name.removesuffix('.parquet')}.images"
    assert synced[-2:] == [(f"{aside}/{staged.name}", staged.size_bytes), (aside, 3)]
    assert (images, 4) in synced and {(f"{images}/{n:08d}.png", 1) for n in range(4)} <= set(synced)
    assert {f"{tmp_path}", f"{tmp_path}/a", sink.path} <= {path for path, _ in synced}, "names of new folders"
    outputs = Outputs(sink, "job")
    outputs.open([], sweep=False)
    outputs.publish(output_of(1, staged, 0))
    synced.clear()
    outputs.finish({})
    renames, manifest = [f"{sink.path}/_images", sink.path], synced[2][0]
    assert [path for path, _ in synced] == [*renames, manifest, sink.path], "renames before the manifest"
    assert MANIFEST in manifest


def test_an_aborted_file_leaves_nothing(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"), format="images")
    writer = Staging(sink, "job").writer(1, "w", SCHEMA)
    writer.write(shard(range(4)))
    writer.abort()
    assert os.listdir(tmp_path / "out" / ".staging-job") == ["schema.json"]


def test_a_file_that_cannot_even_be_closed_is_removed(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path), format="images")

    class Full(Mortal):
        """What waits in a stream's buffer does not fit on the disk."""

        def create(self, name: str) -> BinaryIO:
            stream = (tmp_path / name).open("xb", buffering=1 << 20)
            stream.write(b"waits")
            os.close(stream.fileno())
            return stream

    writer = Staging(sink, "job", Full(files_of_sink(sink.path))).writer(1, "w", SCHEMA)
    writer.abort()
    assert os.listdir(tmp_path / ".staging-job") == ["schema.json"]


def test_the_folder_of_another_job_is_refused_and_left_alone(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"))
    outputs = Outputs(sink, "one")
    outputs.open([])
    mine = output_of(0, stage(Staging(sink, "one"), 0, range(4)), 0)
    outputs.publish(mine)
    before = sorted(os.listdir(sink.path))
    with pytest.raises(SinkError, match="(?s)output of another job.*choose another folder.*remove"):
        Outputs(sink, "two").open([])
    assert sorted(os.listdir(sink.path)) == before and owner_of(sink).job == "one"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["part-000000000000-000000.parquet", "mine.parquet"])
def test_files_of_others_are_not_mixed_with_rows_of_the_job(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    (tmp_path / "README").write_bytes(b"of no concern")
    sink = SinkConfig(path=str(tmp_path))
    with pytest.raises(SinkError, match=f"holds other files already \\({name}\\)"):
        Outputs(sink, "job").open([])
    assert owner_of(sink) is None and sorted(os.listdir(tmp_path)) == ["README", name]


def test_a_ledger_that_was_set_back_does_not_double_rows(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path))
    outputs = Outputs(sink, "job")
    outputs.open([])
    staging = Staging(sink, "job")
    made = [output_of(n, stage(staging, n, range(4 * n, 4 * n + 4)), 4 * n) for n in range(6)]
    for output in made:
        outputs.publish(output)
    with pytest.raises(SinkError, match="(?s)the ledger does not know .* and 2 more.*remove them"):
        Outputs(sink, "job").open(made[:1])
    for output in made[1:]:
        os.unlink(tmp_path / output.name)
    assert Outputs(sink, "job").open(made[:1]) == []
    assert json.loads((tmp_path / MANIFEST).read_bytes())["rows"] == 4


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_output_that_somebody_took_away_is_missed(tmp_path: Path, harm: str) -> None:
    sink = SinkConfig(path=str(tmp_path))
    outputs = Outputs(sink, "job")
    outputs.open([])
    made = output_of(0, stage(Staging(sink, "job"), 0, range(4)), 0)
    outputs.publish(made)
    if harm == "gone":
        os.unlink(tmp_path / made.name)
    else:
        os.truncate(tmp_path / made.name, 10)
    with pytest.raises(SinkError, match="is committed, but its file"):
        Outputs(sink, "job").open([made])


def test_images_that_somebody_took_away_are_missed(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path), format="images")
    outputs = Outputs(sink, "job")
    outputs.open([])
    made = output_of(0, stage(Staging(sink, "job"), 0, range(4)), 0)
    (folder,) = tmp_path.glob(".staging-job/*.images")
    (folder / "00000002.png").unlink()
    with pytest.raises(SinkError, match="3 of 4 images of part-"):
        outputs.publish(made)
    assert not list(tmp_path.glob("*.parquet"))


def test_images_whose_rename_a_machine_lost_are_renamed_again(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path), format="images")
    outputs = Outputs(sink, "job")
    outputs.open([])
    made = output_of(0, stage(Staging(sink, "job"), 0, range(4)), 0, "images")
    outputs.publish(made)
    aside = tmp_path / ".staging-job" / f"{made.staged.name.removesuffix('.parquet')}.images"
    (tmp_path / "_images" / "shard-000000").rename(aside)
    assert Outputs(sink, "job").open([made]) == ["1 files were committed and not published: done"]
    names = ds.dataset(sink.path).to_table().column("image").to_pylist()
    assert [(tmp_path / name).read_bytes() for name in names] == [b"0", b"1", b"2", b"3"]


def test_what_is_left_of_writing_a_manifest_is_swept(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path))
    Outputs(sink, "job").open([])
    for name in (f".{MANIFEST}.0123.part", ".of-others.part"):
        (tmp_path / name).write_bytes(b"{")
    Outputs(sink, "job").open([], sweep=False)
    assert len(os.listdir(tmp_path)) == 3
    Outputs(sink, "job").open([])
    assert sorted(os.listdir(tmp_path)) == [".of-others.part", MANIFEST]


def test_a_copy_that_was_cut_short_is_made_again() -> None:
    sink = SinkConfig(path="memory://cut/short")
    files = files_of_sink(sink.path)
    outputs = Outputs(sink, "job")
    outputs.open([])
    made = output_of(0, stage(Staging(sink, "job"), 0, range(4)), 0)
    files.replace(made.name, b"the first few bytes")
    assert outputs.open([made]) == ["1 files were committed and not published: done"]
    assert files.size(made.name) == made.staged.size_bytes
    assert files.listed(".staging-job") == {}


def test_names_from_other_processes_stay_within_the_folder(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"))
    (tmp_path / "precious").write_text("x")
    outputs = Outputs(sink, "job")
    outputs.open([])
    for name in ("../../precious", "/etc/passwd", ".hidden", "", "a/b"):
        with pytest.raises(SinkError, match="not the name of a staged file"):
            Staging(sink, "job").discard(Staged(name, 1))
        with pytest.raises(SinkError, match="not the name of a staged file"):
            outputs.publish(output_of(0, Staged(name, 1, size_bytes=1), 0))
    assert (tmp_path / "precious").read_text() == "x"


# --- the manifest ------------------------------------------------------------------------------------------


def test_the_manifest_follows_and_is_not_written_for_each_file(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path))
    writes = []

    class Counted(Mortal):
        def replace(self, name: str, data: bytes, fresh: bool = False) -> bool:
            writes.append(name)
            return super().replace(name, data, fresh)

    outputs = Outputs(sink, "job", Counted(files_of_sink(sink.path)))
    outputs.open([])
    staging = tmp_path / ".staging-job"
    staging.mkdir()
    for n in range(MANIFEST_EVERY + 3):
        (staging / f"{n}.parquet").write_bytes(b"12345")
        outputs.publish(output_of(n, Staged(f"{n}.parquet", 4, size_bytes=5), 4 * n))
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    assert writes == [MANIFEST, MANIFEST] and len(manifest["files"]) == MANIFEST_EVERY
    assert manifest["state"] == "running" and owner_of(sink).complete is False  # type: ignore[union-attr]
    outputs.finish({"took": 1.5})
    owner = owner_of(sink)
    assert owner is not None and owner.complete and owner.job == "job" and owner.facts == {"took": 1.5}
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    assert manifest["rows"] == 4 * len(manifest["files"]) == 4 * (MANIFEST_EVERY + 3)
    assert manifest["files"][1]["ranges"] == [[4, 8]]


def test_a_finished_job_stays_as_it_is(tmp_path: Path) -> None:
    sink, store = SinkConfig(path=str(tmp_path)), MemoryStore()
    work(sink, store, files_of_sink(sink.path))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    ledger = DurableLedger.open(store, LedgerSpec(samples=ROWS, shuffle="none"))
    assert Outputs(sink, "job").open(ledger.outputs()) == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_manifest_that_was_removed_is_made_again(tmp_path: Path) -> None:
    sink, store = SinkConfig(path=str(tmp_path)), MemoryStore()
    work(sink, store, files_of_sink(sink.path))
    (tmp_path / MANIFEST).unlink()
    work(sink, store, files_of_sink(sink.path))
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    assert manifest["rows"] == ROWS and manifest["state"] == "finished"


def test_two_jobs_that_open_a_folder_at_once_do_not_both_get_it(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path))

    class Slow(Mortal):
        def replace(self, name: str, data: bytes, fresh: bool = False) -> bool:
            Outputs(sink, "fast").open([])
            return super().replace(name, data, fresh)

    with pytest.raises(SinkError, match="another job"):
        Outputs(sink, "slow", Slow(files_of_sink(sink.path))).open([])
    assert owner_of(sink).job == "fast"  # type: ignore[union-attr]


# --- the ledger --------------------------------------------------------------------------------------------


def test_a_ledger_with_outputs_does_not_go_back() -> None:
    ledger = DurableLedger.open(MemoryStore(), LedgerSpec(samples=ROWS))
    snapshot = ledger.snapshot_bytes()
    ledger.add_output(Output(1, "part", ((0, 4),), Staged("x", 4)))
    for back in (ledger.reset, lambda: ledger.replace(snapshot)):
        with pytest.raises(LedgerError, match="cannot go back"):
            back()
    assert ledger.commit() and len(ledger.outputs()) == 1
