"""What a user of `shoestring infer` does, from rows to a report, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shoestring.base.clock import SystemClock
from shoestring.base.errors import ConfigError
from shoestring.base.record import read_events
from shoestring.commands.infer import job_config
from shoestring.infer import Pipeline
from tests.commands.infer_jobs import here, infer, output, rows, words, write_csv, write_stage
from tests.commands.journeys import shoestring, start_shoestring
from tests.disks import resize, small_disk
from tests.waiting import wait_until

BUG_S = 20.0
"""A bug is told within that time; it takes a second or two where the machine is free."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job of two files."""
    folder = tmp_path_factory.mktemp("job")
    write_stage(folder)
    write_csv(folder / "data" / "a.csv", range(300))
    write_csv(folder / "data" / "b.csv", range(300, 500))
    done = shoestring(*words(folder, "--name", "first", "--set", "shards.rows=100"))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["status"] == "finished" and answer["result"]["rows"] == 500
    assert answer["output"] == str(folder / "out") and Path(answer["report"]).is_file()
    return folder


def test_each_row_is_there_once_with_its_identity_its_columns_and_its_answer(finished: Path) -> None:
    found = rows(finished)
    assert len(found) == 500
    assert found["b.csv#7"] == {
        "row": "b.csv#7", "x": 307, "text": "row 307", "scaled": 614, "error": None,
    }  # fmt: skip
    assert all(row["scaled"] == 2 * row["x"] and row["error"] is None for row in found.values())


def test_the_output_is_files_in_the_order_of_rows_and_a_manifest(finished: Path) -> None:
    files = sorted((finished / "out").glob("*.parquet"))
    assert len(files) == 5
    assert pa.concat_tables([pq.read_table(one) for one in files])["x"].to_pylist() == list(range(500))
    manifest = json.loads((finished / "out" / "_manifest.json").read_text())
    assert manifest["state"] == "finished" and manifest["facts"]["rows"] == 500
    assert not list((finished / "out").glob(".staging*"))


def test_its_record_has_every_part(finished: Path) -> None:
    log = read_events(finished / "runs" / "first" / "events.jsonl")
    assert not log.damage
    assert {"run", "data", "trial", "plan", "summary", "result", "end"} <= {
        event["kind"] for event in log.events
    }
    trial = log.of("trial")[0]
    assert [part["name"] for part in trial["parts"]] == ["load", "scale", "write"]
    assert trial["columns"] == {"scale.scaled": "int64"}
    assert log.of("data")[0]["rows"] == 500 and log.of("plan")[0]["shard_rows"] == 100


def test_runs_and_report_know_it(finished: Path) -> None:
    where = ["--runs-dir", str(finished / "runs")]
    listed = json.loads(here("runs", "--json", *where).stdout)
    assert [(row["run"], row["status"], row["rows"], row["done"], row["failed"]) for row in listed] == [
        ("first", "finished", 500, 500, 0)
    ]
    assert "first" in here("runs", *where).stdout
    verified = here("report", "first", "--verify", "--json", *where)
    assert verified.exit_code == 0, verified.stdout
    assert json.loads(verified.stdout)["figures"] > 50


def test_again_it_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "out").iterdir()}
    code, answer = infer(finished, "--set", "shards.rows=100")
    assert code == 0 and answer["status"] == "finished" and answer["run"] == "first"
    resumed = here("resume", "first", "--runs-dir", str(finished / "runs"))
    assert resumed.exit_code == 0 and "finished already" in resumed.stdout
    assert {path: path.stat().st_mtime_ns for path in (finished / "out").iterdir()} == before
    elsewhere = here(*words(finished, "--runs-dir", str(finished / "other-runs")))
    assert elsewhere.exit_code == 0 and json.loads(elsewhere.stdout)["status"] == "finished"
    result = json.loads(elsewhere.stdout)["result"]
    assert (result["rows"], result["failed"], result["skipped"]) == (500, 0, 0)


def test_another_job_is_kept_off_its_output(finished: Path) -> None:
    code, answer = infer(finished, "--set", "seed=1")
    assert code == 9 and "output of another job" in answer["error"]["what"]
    assert "--output" in answer["error"]["todo"]
    assert len(rows(finished)) == 500


def test_a_dry_run_tells_costs_and_writes_nothing(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(400))
    arguments = [word for word in words(tmp_path, "--dry-run") if word != "--json"]
    told = here(*arguments)
    assert told.exit_code == 0, told.stderr
    assert "trial: 100 rows" in told.stdout and "for 400 rows" in told.stdout
    before, said, _ = told.stdout.partition("trying 100 rows through scale\n")
    assert said and "looking through a.csv" in before and "trial:" not in before
    lines = [line.split()[0] for line in told.stdout.splitlines() if line.startswith("  ")]
    assert lines[:4] == ["part", "load", "scale", "write"]
    assert "column scale.scaled: int64" in told.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "stages.py"]
    code, answer = infer(tmp_path, "--dry-run")
    assert code == 0 and answer["trial"]["rows"] == 100 and answer["trial"]["expected_s"] > 0
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


def test_a_bug_stops_the_job_at_once_with_its_traceback_and_its_row(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(100_000))
    clock = SystemClock()
    began_s = clock.now()
    code, answer = infer(tmp_path, stage="stages.py:Buggy")
    assert code == 10, answer
    assert clock.now() - began_s < BUG_S
    what = answer["error"]["what"]
    assert "no_such_column" in what and "Traceback" in what and "stages.py" in what and "a.csv#" in what
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.parametrize(
    ("arguments", "stage", "code", "what"),
    [
        (("--set", "shards.row=5"), "stages.py:Scale", 2, "unknown setting `shards.row`"),
        ((), "stages.py:Missing", 2, "defines no Missing"),
        (("--set", "fleet.transport=inprocess"), "stages.py:Scale", 2, "fleet.transport is inprocess"),
        (("--source", "/nowhere/*.csv"), "stages.py:Scale", 3, "/nowhere/*.csv"),
        (("--set", 'source.files=["/nowhere/*.csv"]'), "stages.py:Scale", 3, "/nowhere/*.csv"),
        (("--set", 'source.columns=["y"]'), "stages.py:Scale", 3, "no file has a column 'y'"),
        (("--set", "sink.path=/dev/null/x"), "stages.py:Scale", 9, "/dev/null/x"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(
    tmp_path: Path, arguments: tuple[str, ...], stage: str, code: int, what: str
) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(10))
    found, answer = infer(tmp_path, *arguments, stage=stage)
    assert found == code, answer
    assert what in answer["error"]["what"] and answer["error"]["todo"]


def test_a_model_file_of_the_wrong_kind_is_told(tmp_path: Path) -> None:
    write_csv(tmp_path / "data" / "a.csv", range(10))
    (tmp_path / "model.onnx").write_bytes(b"this is no model")
    (tmp_path / "model.pt2").write_bytes(b"nor is this")
    for name, kind in (("model.onnx", "ONNX"), ("model.pt2", "torch.export")):
        code, answer = infer(tmp_path, stage=str(tmp_path / name))
        assert code == 2 and kind in answer["error"]["what"] and answer["error"]["todo"], answer


def test_nothing_to_do_is_told(tmp_path: Path) -> None:
    done = here("infer", "--json")
    assert done.exit_code == 2 and "--source" in json.loads(done.stdout)["error"]["todo"]
    write_csv(tmp_path / "data" / "a.csv", range(10))
    done = here("infer", "--source", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--json")
    assert done.exit_code == 2 and "no stage" in json.loads(done.stdout)["error"]["what"]


def test_settings_of_a_file_are_laid_over_by_the_words_of_the_command_line(tmp_path: Path) -> None:
    job, more = tmp_path / "job.toml", tmp_path / "more.toml"
    job.write_text(
        """
        job = "infer"
        sink = {path = "from-file", format = "jsonl"}
        source.files = ["a.csv"]
        [[stages]]
        uses = "models.py:Detect"
        batch = 4
        [[stages]]
        uses = "models.py:Classify"
        after = "detect"
        """
    )
    more.write_text("[shards]\nrows = 9\n")
    found = job_config(job, (), (), "elsewhere", ("limits.bug_rows=2",), (more,))
    assert found.sink.path == "elsewhere" and found.sink.format == "jsonl"
    assert found.source.files == ("a.csv",) and found.shards.rows == 9 and found.limits.bug_rows == 2
    assert [(one.uses, one.batch, one.after) for one in found.stages] == [
        ("models.py:Detect", 4, ""),
        ("models.py:Classify", 0, "detect"),
    ]
    replaced = job_config(job, ("b.csv", "c.csv"), ("other.py:Model",), "", (), ())
    assert replaced.source.files == ("b.csv", "c.csv") and len(replaced.stages) == 1
    more.write_text('job = "pretrain"')
    with pytest.raises(ConfigError, match="is of a job 'pretrain'"):
        job_config(job, (), (), "", (), (more,))


def test_not_a_number_is_kept_and_counted(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(-5, 15))
    code, answer = infer(tmp_path, stage="stages.py:Root")
    assert code == 0, answer
    found = rows(tmp_path)
    assert len(found) == 20 and all(row["error"] is None for row in found.values())
    assert sum(row["root"] != row["root"] for row in found.values()) == 5
    assert answer["result"]["not_numbers"] == {"root": 5} and answer["result"]["failed"] == 0


def test_bad_files_and_rows_cost_only_themselves(tmp_path: Path) -> None:
    """Broken footer, broken rows, other columns, a line that is no JSON, a row that is too large."""
    write_stage(tmp_path)
    data = tmp_path / "data"
    write_csv(data / "a.csv", range(20))
    pq.write_table(pa.table({"x": list(range(20, 40))}), data / "b.parquet")
    whole = (data / "b.parquet").read_bytes()
    (data / "footer.parquet").write_bytes(whole[:-9] + b"\xff" * 5 + b"PAR1")
    big = pa.table({"x": list(range(40, 2040)), "text": [f"{x * 7919 % 10**8:08d}" for x in range(2000)]})
    pq.write_table(big, data / "rows.parquet", row_group_size=1000, compression="zstd", use_dictionary=False)
    spoilt = bytearray((data / "rows.parquet").read_bytes())
    spoilt[200:1200] = b"\xff" * 1000
    (data / "rows.parquet").write_bytes(bytes(spoilt))
    (data / "c.jsonl").write_text(
        '{"x": 1, "other": true}\nthis is no JSON\n{"x": 2, "text": "' + "w" * 5000 + '"}\n{"x": 3}\n'
    )
    code, answer = infer(tmp_path, "--set", "source.max_row_bytes=4000", "--set", "limits.max_error_share=1")
    assert code == 0, answer
    found = rows(tmp_path)
    assert len(found) == 20 + 20 + 2000 + 4
    assert found["c.jsonl#1"]["error"] and found["c.jsonl#1"]["scaled"] is None
    assert "larger than source.max_row_bytes" in found["c.jsonl#2"]["error"]
    assert found["c.jsonl#3"]["scaled"] == 6 and found["c.jsonl#0"]["other"] is True
    bad = [row for name, row in found.items() if name.startswith("rows.parquet") and row["error"]]
    assert 0 < len(bad) <= 1000
    assert all(row["scaled"] == 2 * row["x"] for row in found.values() if row["error"] is None)
    assert answer["result"]["failed"] == len([row for row in found.values() if row["error"]])
    check_left_out(answer["result"])
    _, tried = infer(tmp_path, "--set", "limits.max_error_share=1", "--dry-run")
    check_left_out(tried["trial"])
    arguments = [word for word in words(tmp_path, "--set", "source.max_row_bytes=4000") if word != "--json"]
    arguments[arguments.index("--output") + 1] = str(tmp_path / "again")
    told = here(*arguments, "--set", "limits.max_error_share=1").stdout
    assert "warning: 1 file is left out" in told.partition("output: ")[2], "it is said last of all"


def check_left_out(facts: dict[str, Any]) -> None:
    """The file with the broken footer is told, with the reason."""
    assert facts["skipped"] == 1
    (first,) = facts["first_skipped"]
    assert first["file"].endswith("footer.parquet") and first["reason"]


def test_too_many_errors_stop_the_job_and_the_same_job_that_bears_them_goes_on(tmp_path: Path) -> None:
    write_stage(
        tmp_path,
        """
        class Picky:
            def __call__(self, batch):
                if (batch["x"] % 3 == 0).any():
                    raise ValueError("three divides it")
                return {"scaled": batch["x"] * 2}
        """,
    )
    write_csv(tmp_path / "data" / "a.csv", range(300))
    code, answer = infer(tmp_path, "--name", "job", stage="stages.py:Picky")
    assert code == 7, answer
    assert "more than 15 that are allowed" in answer["error"] and "max_error_share" in answer["todo"]
    code, answer = infer(tmp_path, "--set", "limits.max_error_share=0.5", stage="stages.py:Picky")
    assert code == 0 and answer["run"] == "job", answer  # found by its output, though it was not named
    found = rows(tmp_path)
    assert len(found) == 300
    for row in found.values():
        assert ("three divides it" in row["error"]) if row["x"] % 3 == 0 else row["scaled"] == 2 * row["x"]


@pytest.mark.faults
@pytest.mark.long
def test_a_row_that_takes_too_much_memory_costs_itself(tmp_path: Path) -> None:
    write_stage(
        tmp_path,
        """
        import time

        class Greedy:
            def __call__(self, batch):
                for x in batch["x"]:
                    if x == 77:
                        held = bytearray(800 << 20)
                        held[::4096] = b"x" * len(held[::4096])
                        time.sleep(60)
                return {"scaled": batch["x"] * 2}
        """,
    )
    write_csv(tmp_path / "data" / "a.csv", range(120))
    memory = 'stages=[{uses="%s", memory_bytes=600000000}]'.replace("%s", f"{tmp_path}/stages.py:Greedy")
    code, answer = infer(tmp_path, "--set", memory)
    assert code == 0, answer
    found = rows(tmp_path)
    assert len(found) == 120 and "memory" in found["a.csv#77"]["error"]
    assert all(row["scaled"] == 2 * row["x"] for name, row in found.items() if name != "a.csv#77")


def test_pictures_that_cannot_be_decoded_cost_themselves(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        Image.new("RGB", (8 + number, 8), (number, 0, 0)).save(data / f"{number}.png")
    (data / "broken.png").write_bytes((data / "0.png").read_bytes()[:40])
    (data / "text.png").write_text("this is no picture")
    arguments = ("--set", 'stages=[{kind="images"}]', "--set", "limits.max_error_share=1")
    code, answer = infer(tmp_path, *arguments)
    assert code == 0, answer
    found = rows(tmp_path)
    assert len(found) == 8
    bad = sorted(name for name, row in found.items() if row["error"])
    assert bad == ["broken.png#0", "text.png#0"]


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 kB where the output goes."""
    with small_disk(tmp_path / "out", "128k") as disk:
        yield disk


@pytest.mark.faults
def test_a_full_sink_is_told_and_with_room_the_job_goes_on(tmp_path: Path, full_soon: Path) -> None:
    write_stage(
        tmp_path,
        """
        import numpy as np

        class Wide:
            def __call__(self, batch):
                return {"wide": np.random.default_rng(0).random((len(batch), 64))}
        """,
    )
    write_csv(tmp_path / "data" / "a.csv", range(1000))
    arguments = ("--name", "job", "--set", "shards.rows=100")
    code, answer = infer(tmp_path, *arguments, stage="stages.py:Wide")
    assert code and answer["status"] == "failed", answer
    assert "No space left" in answer["error"] or "full" in answer["error"]
    assert answer["todo"]
    done = len(rows(tmp_path)) if list(full_soon.glob("part-*")) else 0
    assert done < 1000
    resize(full_soon, "16m")
    code, answer = infer(tmp_path, *arguments, stage="stages.py:Wide")
    assert code == 0, answer
    assert len(rows(tmp_path)) == 1000


def processes_of(folder: Path) -> list[int]:
    """Those whose command line names a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if str(folder).encode() in line:
                found.append(int(entry.name))
    return found


@pytest.mark.faults
def test_the_same_command_goes_on_after_a_kill_and_nobody_is_left_meanwhile(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(300))
    slow = '[{uses="%s:Scale", options={slow_s=0.01}, batch=5}]'.replace("%s", str(tmp_path / "stages.py"))
    command = words(tmp_path, "--set", "shards.rows=20", "--set", f"stages={slow}")
    process = start_shoestring(*command)
    assert wait_until(lambda: list((tmp_path / "out").glob("part-*")) or process.poll() is not None, 60.0)
    process.kill()
    process.communicate(timeout=100)
    assert wait_until(lambda: not processes_of(tmp_path), 60.0)
    before = {path.name for path in (tmp_path / "out").glob("part-*")}
    assert before and len(rows(tmp_path)) < 300
    done = here(*command)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert before <= {path.name for path in (tmp_path / "out").glob("part-*")}
    found = rows(tmp_path)
    assert len(found) == 300 and all(row["scaled"] == 2 * row["x"] for row in found.values())


@pytest.mark.faults
def test_files_that_vanish_or_change_meanwhile_cost_their_own_rows(tmp_path: Path) -> None:
    """Interrupted by Ctrl-C in its middle, too, and gone on with: each row is there once."""
    write_stage(tmp_path)
    for number, name in enumerate("abcd"):
        write_csv(tmp_path / "data" / f"{name}.csv", range(100 * number, 100 * number + 100))
    arguments = ["--name", "job", "--set", "shards.rows=10", "--set", "limits.max_error_share=1"]
    arguments += [
        "--set",
        'stages=[{uses="%s:Scale", options={slow_s=0.01}, batch=5}]' % (tmp_path / "stages.py"),
    ]
    process = start_shoestring(*words(tmp_path, *arguments))
    assert wait_until(lambda: list((tmp_path / "out").glob("part-*")) or process.poll() is not None, 60.0)
    process.send_signal(signal.SIGINT)
    answer = json.loads(process.communicate(timeout=100)[0])
    assert process.returncode == 130 and answer["status"] == "interrupted", answer
    done = {row["row"] for row in output(tmp_path).to_pylist()}
    assert 0 < len(done) < 400 and not any(name.startswith("d.csv") for name in done)
    (tmp_path / "data" / "d.csv").unlink()
    write_csv(tmp_path / "data" / "c.csv", range(1000, 1100))
    os.utime(tmp_path / "data" / "c.csv", (1, 1))

    resumed = here("resume", "job", "--runs-dir", str(tmp_path / "runs"), "--json")
    assert resumed.exit_code == 0, resumed.stdout + resumed.stderr
    found = rows(tmp_path)
    assert len(found) == 400
    for name, row in found.items():
        if name in done or name.startswith(("a.csv", "b.csv")):
            assert row["error"] is None and row["scaled"] == 2 * row["x"]
        else:
            assert row["error"] and row["scaled"] is None
    kinds = json.loads(resumed.stdout)["result"]["errors"]
    assert any("changed since the job began" in kind for kind in kinds)


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages = write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(50))
    pipeline = (
        Pipeline("data/*.csv", "out")
        .stage(f"{stages}:Scale", factor=3)
        .stage(f"{stages}:Root", after="rows", keep=True)
    )
    assert pipeline.dry_run().expected.rows == 50
    result = pipeline.run()
    assert result.rows == 50 and result.failed == 0 and result.output == "out" and result.run_dir is not None
    found = rows(tmp_path)
    assert found["a.csv#9"]["scaled"] == 27 and found["a.csv#9"]["root"] == 3.0
    assert result.took_s > 0 and result.rows_per_s == pytest.approx(50 / result.took_s, rel=1e-3)
    assert result.lost_rows == 0 and result.skipped == 0
    again = pipeline.run()
    assert again == result
    elsewhere = (
        Pipeline("data/*.csv", "out", runs_dir="other-runs")
        .stage(f"{stages}:Scale", factor=3)
        .stage(f"{stages}:Root", after="rows", keep=True)
        .run()
    )
    assert (elsewhere.rows, elsewhere.run_dir, elsewhere.took_s) == (50, None, 0.0)
