"""What a user does, from a text to a report, and what a user does wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from shoestring.base.record import read_events
from tests.commands.journeys import shoestring, start_shoestring, tiny_sets, write_texts


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with two workers, one of which was killed by the drill."""
    root = tmp_path_factory.mktemp("finished")
    data = write_texts(root / "data")
    (data / "binary.txt").write_bytes(b"\x00\x01\x02" * 100)
    sets = tiny_sets(data, root / "cache", fleet__pace__steps=30, fleet__drill__kill="w1")
    done = shoestring("run", "demo", "--name", "tiny", "--runs-dir", str(root / "runs"), "--json", *sets)
    assert done.returncode == 0, done.stderr + done.stdout
    answer = json.loads(done.stdout)
    assert answer["status"] == "finished" and Path(answer["report"]).is_file()
    assert Path(answer["checkpoint"]).is_dir()
    return root / "runs"


def test_the_run_tells_its_story(finished: Path) -> None:
    events = read_events(finished / "tiny" / "events.jsonl")
    assert not events.damage
    assert {"run", "data", "plan", "round", "step", "checkpoint", "evaluation", "result", "end"} <= {
        event["kind"] for event in events.events
    }
    assert any("SIGKILL" in event["reason"] for event in events.of("fault"))
    # A survivor may be stuck in a message of the one that was killed, and steps are then made again.
    assert sorted({event["step"] for event in events.of("step")}) == list(range(1, 31))
    skipped = events.of("data")[0]["skipped"]
    assert len(skipped) == 1 and "binary.txt" in skipped[0]["path"]
    names = {event["name"] for event in events.of("evaluation")}
    assert "model" in names and len(names) == 4


def test_runs_generate_evaluate_report_export(finished: Path, tmp_path: Path) -> None:
    where = ["--runs-dir", str(finished)]
    listed = json.loads(shoestring("runs", "--json", *where).stdout)
    assert [(row["run"], row["status"], row["steps"]) for row in listed] == [("tiny", "finished", 30)]
    made = [
        json.loads(
            shoestring("generate", "tiny", "--prompt", "def ", "--tokens", "8", "--json", *where).stdout
        )
        for _ in range(2)
    ]
    assert made[0]["text"].startswith("def ") and made[0] == made[1]
    evaluated = shoestring("evaluate", "tiny", "--json", *where)
    assert evaluated.returncode == 0, evaluated.stderr
    scored = json.loads(evaluated.stdout)
    before = read_events(finished / "tiny" / "events.jsonl").of("result")[0]["bits_per_byte"]
    assert scored["bits_per_byte"] == pytest.approx(before, rel=1e-4)
    checked = shoestring("report", "tiny", "--verify", "--json", *where)
    assert checked.returncode == 0 and json.loads(checked.stdout)["figures"] > 20, (
        checked.stdout + checked.stderr
    )
    exported = shoestring("export", "tiny", "--output", str(tmp_path / "out"), "--json", *where)
    assert exported.returncode == 0, exported.stderr
    assert {"config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    finished: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished, runs)
    data = write_texts(tmp_path / "data")
    assert data.is_dir()
    newest = sorted((runs / "tiny" / "checkpoints").glob("step-????????"))[-1]
    victim = next(newest.glob("*.safetensors"))
    with victim.open("r+b") as file:
        file.seek(victim.stat().st_size // 2)
        file.write(b"damaged!")
    with (runs / "tiny" / "events.jsonl").open("ab") as log:
        log.write(b'{"crc": "00000000", "event": {"kind":"st')
    more = ["--set", "fleet.pace.steps=34", "--runs-dir", str(runs), "--json"]
    done = shoestring("resume", "tiny", *more)
    events = read_events(runs / "tiny" / "events.jsonl")
    reasons = " ".join(event["reason"] for event in events.of("fault"))
    assert newest.name in reasons and "checksum" in reasons
    assert "event log has 1 damaged" in reasons
    assert done.returncode == 0 or "damaged" in done.stdout + done.stderr


def test_ctrl_c_checkpoints_and_resume_goes_on(tmp_path: Path) -> None:
    data, runs = write_texts(tmp_path / "data"), str(tmp_path / "runs")
    sets = tiny_sets(data, tmp_path / "cache", fleet__pace__steps=100000)
    process = start_shoestring("run", "demo", "--name", "long", "--runs-dir", runs, *sets)
    log = tmp_path / "runs" / "long" / "events.jsonl"
    _wait_for(lambda: log.exists() and len(read_events(log).of("step")) > 3)
    busy = shoestring("resume", "long", "--runs-dir", runs)
    assert busy.returncode == 8 and "in progress" in busy.stderr
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, out + error
    assert "resume" in out + error
    saved = read_events(log).of("checkpoint")[-1]["step"]
    resumed = shoestring(
        "resume", "long", "--runs-dir", runs, "--set", f"fleet.pace.steps={saved + 4}", "--json"
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    steps = [event["step"] for event in read_events(log).of("step")]
    assert steps == list(range(1, saved + 5))


def test_a_killed_supervisor_leaves_no_process_and_resumes(tmp_path: Path) -> None:
    data, runs = write_texts(tmp_path / "data"), str(tmp_path / "runs")
    sets = tiny_sets(data, tmp_path / "cache", fleet__pace__steps=100000, fleet__checkpoint__every_steps=5)
    process = start_shoestring("run", "demo", "--name", "killed", "--runs-dir", runs, *sets)
    log = tmp_path / "runs" / "killed" / "events.jsonl"
    _wait_for(lambda: log.exists() and len(read_events(log).of("checkpoint")) > 1)
    children = _children(process.pid)
    assert len(children) >= 3
    process.kill()
    process.wait()
    _wait_for(lambda: not any(_alive(child) for child in children))
    step = read_events(log).of("step")[-1]["step"]
    resumed = shoestring(
        "resume", "killed", "--runs-dir", runs, "--set", f"fleet.pace.steps={step + 10}", "--json"
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _wait_for(condition: object, patience_s: float = 60.0) -> None:
    assert callable(condition)
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "the condition did not come about"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "demo", "--set", "fleet.pace.bugdet_s=3"], 2, "budget_s"),
        (["run", "demo", "--set", "train.micro_batch=many"], 2, "train.micro_batch"),
        (["run", "dmo"], 2, "recipes:"),
        (["run", "demo", "--set", "data.files=/nonexistent/**/*.md"], 3, "/nonexistent"),
        (["resume", "nothing"], 8, "no run"),
        (["generate", "nothing"], 8, "no run"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = shoestring(*arguments, "--runs-dir", str(tmp_path))
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "what to do" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_binary_files_are_fatal(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.txt").write_bytes(os.urandom(500) + b"\x00")
    done = shoestring(
        "run", "demo", "--runs-dir", str(tmp_path / "runs"), *tiny_sets(data, tmp_path / "cache")
    )
    assert done.returncode == 3 and "what to do" in done.stderr, done.stderr


def test_a_taken_name_is_refused(finished: Path, tmp_path: Path) -> None:
    done = shoestring("run", "demo", "--name", "tiny", "--runs-dir", str(finished))
    assert done.returncode == 8 and "resume" in done.stderr
