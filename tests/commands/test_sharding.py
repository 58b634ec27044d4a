"""A cluster file and `parallel.*` by the command line: what is refused before anything starts, and a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoestring import cli
from shoestring.base.record import read_events
from tests.commands.clusters import write_cluster
from tests.commands.journeys import shoestring, tiny_sets, write_texts


def _plan(path: Path, *sets: str) -> tuple[int, str]:
    every = (f"parallel.cluster={path}", "fleet.members.workers=0", *sets)
    arguments = [part for text in every for part in ("--set", text)]
    done = CliRunner().invoke(cli.build(), ["plan", "demo", "--json", *arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["fleet.members.workers=3"], "it names 4 workers, fleet.members.workers is 3"),
        (["parallel.group_size=3"], "groups of 3 do not divide 4 ranks"),
        (["parallel.strategy=IXG"], "'IXG' is no strategy"),
        (["parallel.strategy=GGI"], "GGI is not built"),
        (["parallel.strategy=NNN", "parallel.memory_limit_bytes=560000000"], "the smallest, NNG, needs"),
        (["parallel.memory_limit_bytes=1000"], "no strategy fits into 1000 bytes a rank; the smallest, "),
        (["parallel.dtype=fp8"], "parallel.dtype"),
        (["parallel.stratgy=IIG"], "parallel.strategy"),
        (["train.sharding.strategy=IIG"], "what the plan fills in"),
    ],
)
def test_what_cannot_be_is_refused_before_the_start(tmp_path: Path, sets: list[str], words: str) -> None:
    code, output = _plan(write_cluster(tmp_path / "cluster.toml", 4, 2), *sets)
    assert code == 2, output
    error = json.loads(output)["error"]
    assert words in error["what"] and error["todo"]


def test_a_file_of_other_machines_stops_a_run_before_its_data_is_read(tmp_path: Path) -> None:
    path = write_cluster(tmp_path / "cluster.toml", 2, 2, hosts=2)
    sets = ["--set", f"parallel.cluster={path}", "--set", "fleet.members.workers=0"]
    arguments = ["run", "demo", "--runs-dir", str(tmp_path / "runs"), "--name", "no", "--json", *sets]
    done = CliRunner().invoke(cli.build(), arguments)
    assert done.exit_code == 2 and "names 2 hosts" in done.output, done.output
    kinds = [event["kind"] for event in read_events(tmp_path / "runs" / "no" / "events.jsonl").events]
    assert kinds == ["run", "end"]


def test_a_plan_over_a_cluster_file_has_all_strategies(tmp_path: Path) -> None:
    code, output = _plan(write_cluster(tmp_path / "cluster.toml", 4, 2), "parallel.strategy=iig")
    made = json.loads(output)
    assert code == 0 and made["workers"] == 4
    assert made["sharding"]["strategy"] == "IIG" and len(made["sharding"]["rows"]) == 27
    assert made["sharding"]["groups"] == [[0, 1], [2, 3]]


def test_a_run_is_sharded_over_two_groups_and_goes_on_under_another_strategy(tmp_path: Path) -> None:
    data, runs = write_texts(tmp_path / "data"), str(tmp_path / "runs")
    path = write_cluster(tmp_path / "four.toml", 4, 2)
    more = {"parallel.strategy": "IIG", "parallel.cluster": str(path), "fleet.members.workers": 0}
    sets = tiny_sets(data, tmp_path / "cache", evaluate__baselines="false", **more)
    done = shoestring("run", "pretrain", "--name", "tiny", "--runs-dir", runs, "--json", *sets)
    assert done.returncode == 0, done.stderr + done.stdout
    log = tmp_path / "runs" / "tiny" / "events.jsonl"
    first = read_events(log)
    assert not first.of("fault")
    plan = first.of("plan")[-1]
    assert (plan["workers"], plan["sharding"]["strategy"], plan["dtype"]) == (4, "IIG", "fp32")
    assert [len(step["workers"]) for step in first.of("step")] == [4] * 6
    assert json.loads(done.stdout)["result"]["bits_per_byte"] > 0
    two = write_cluster(tmp_path / "two.toml", 2, 1)
    changed = (f"parallel.cluster={two}", "parallel.strategy=NGG", "fleet.pace.steps=8")
    sets = [part for text in changed for part in ("--set", text)]
    resumed = shoestring("resume", "tiny", "--runs-dir", runs, "--json", *sets)
    assert resumed.returncode == 0, resumed.stderr + resumed.stdout
    events = read_events(log)
    losses = [step["metrics"]["loss"] for step in events.of("step")]
    assert [step["step"] for step in events.of("step")] == list(range(1, 9))
    assert losses[6] < losses[3], f"the resumed run forgot: {losses}"
    assert events.of("plan")[-1]["sharding"]["strategy"] == "NGG"


def test_local_steps_by_the_clock_from_text_to_report(tmp_path: Path) -> None:
    data, runs = write_texts(tmp_path / "data"), tmp_path / "runs"
    sets = tiny_sets(
        data, tmp_path / "cache", train__sync="edit", fleet__pace__window_s=0.4, fleet__members__workers=2
    )  # fmt: skip
    done = shoestring("run", "demo", "--name", "local", "--runs-dir", str(runs), "--json", *sets)
    assert done.returncode == 0, done.stderr + done.stdout
    steps = read_events(runs / "local" / "events.jsonl").of("step")
    assert len(steps) == 6 and all(step["metrics"]["local_steps"] >= 2 for step in steps)
    assert steps[-1]["metrics"]["loss"] < steps[0]["metrics"]["loss"]
    for command in (("report", "--verify"), ("evaluate",)):
        again = shoestring(command[0], "local", "--runs-dir", str(runs), *command[1:])
        assert again.returncode == 0, again.stderr + again.stdout


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["fleet.pace.window_s=5"], "set train.sync=edit too"),
        (["train.sync=edit", "parallel.strategy=IIG"], "parallel.strategy=NNN"),
        (["fleet.control.policy=backup", "parallel.strategy=GGG"], "parallel.strategy=NNN"),
        (["train.sync=edit", "fleet.control.policy=backup"], "nobody is waited for"),
        (["fleet.control.policy=nd-backup", "parallel.strategy=GGG"], "parallel.strategy=NNN"),
        (["train.sync=local"], "edit"),
    ],
)
def test_ways_of_working_that_do_not_agree_are_refused(sets: list[str], words: str) -> None:
    arguments = [part for text in sets for part in ("--set", text)]
    done = CliRunner().invoke(cli.build(), ["plan", "demo", "--json", *arguments])
    assert done.exit_code == 2, done.output
    error = json.loads(done.output)["error"]
    assert words in error["what"] + error["todo"]
