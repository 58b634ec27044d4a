"""The command line: parses and dispatches, nothing else (source: ours).

What a command does stands in the function that `COMMANDS` names; it is imported when the command
is called, so that `shoestring --help` loads neither torch nor ray nor any config. The function
gets every parameter of the command by name and returns the exit code.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from shoestring import __version__
from shoestring.base.errors import ShoestringError

INTERRUPTED_EXIT_CODE = 130

RECIPE = click.Argument(["recipe"])
RUN = click.Argument(["run"])
RUNS_DIR = click.Option(
    ["--runs-dir"],
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where the runs are kept.",
)
AS_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON for scripts; errors too.")
SETS = click.Option(
    ["--set", "sets"], multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. pace.steps=100."
)
TOML_FILES = click.Option(
    ["--config", "toml_files"],
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.toml",
    help="Settings to lay over the recipe's.",
)
NAME = click.Option(["--name"], default="", help="Name of the run; one is made up when not given.")
GENERATE_OPTIONS = (
    click.Option(["--prompt"], default="", help="Text to go on from."),
    click.Option(
        ["--tokens"], type=click.IntRange(min=1), default=200, show_default=True, help="How many to make."
    ),
    click.Option(
        ["--temperature"],
        type=click.FloatRange(min=0.0),
        default=0.8,
        show_default=True,
        help="0 takes the likeliest token every time.",
    ),
    click.Option(
        ["--top-p"],
        type=click.FloatRange(min=0.0, max=1.0, min_open=True),
        default=0.95,
        show_default=True,
        help="Draw from the likeliest tokens that hold this much probability.",
    ),
    click.Option(
        ["--seed"], type=int, default=0, show_default=True, help="The same seed gives the same text."
    ),
)
PICTURE = click.Option(
    ["--picture"],
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE",
    help="Draw time over memory of every way: FILE.html or FILE.png.",
)
VERIFY = click.Option(["--verify"], is_flag=True, help="Recompute every number on the page from the record.")
OUTPUT = click.Option(
    ["--output"],
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for weights, configuration and tokenizer.",
)
INFER_OPTIONS = (
    click.Argument(
        ["job"], required=False, type=click.Path(dir_okay=False, path_type=Path), metavar="[JOB.toml]"
    ),
    click.Option(
        ["--source"],
        multiple=True,
        metavar="FILES",
        help="Files to read: globs, folders or URLs of parquet, jsonl, csv, text, images. May be repeated.",
    ),
    click.Option(
        ["--stage"],
        multiple=True,
        metavar="STAGE",
        help="What rows go through, in order: FILE.py:CLASS, MODULE:CLASS, or the path of a model. May be "
        "repeated.",
    ),
    click.Option(["--output"], default="", metavar="DIR", help="Folder or URL for the output."),
)
DRY_RUN = click.Option(
    ["--dry-run", "dry"], is_flag=True, help="Only try some rows: what each part costs, what to expect."
)
SIM_OPTIONS = (
    click.Option(
        ["--seeds"], type=click.IntRange(min=1), default=1000, show_default=True, help="How many worlds."
    ),
    click.Option(["--seed"], type=int, default=None, help="Replay this one world instead."),
    click.Option(
        ["--policy"], default="", help="Check and measure this policy (or yours: module:function) instead."
    ),
)
PROBE_OPTIONS = (
    click.Option(
        ["--workers"],
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="How many workers; 0: one for each GPU of this machine, or else for each core.",
    ),
    click.Option(
        ["--transport"],
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Processes of this machine, or a Ray cluster.",
    ),
    click.Option(
        ["--seconds"],
        type=click.FloatRange(min=1.0),
        default=30.0,
        show_default=True,
        help="About how long to measure at the most; a few workers take less.",
    ),
    click.Option(
        ["--output"],
        type=click.Path(path_type=Path),
        default=Path("cluster.toml"),
        show_default=True,
        help="Where to write the cluster file.",
    ),
    click.Option(
        ["--page"],
        type=click.Path(path_type=Path),
        default=Path("cluster.html"),
        show_default=True,
        help="Where to write the page with the heat maps.",
    ),
)


@dataclass(frozen=True)
class Command:
    """One command: its name, help, "module:function" and parameters."""

    name: str
    help: str
    target: str
    params: tuple[click.Parameter, ...]


COMMANDS = (
    Command(
        "run",
        "Start a run of a recipe.",
        "shoestring.commands.run:run",
        (RECIPE, SETS, TOML_FILES, NAME, RUNS_DIR, AS_JSON),
    ),
    Command(
        "resume",
        "Go on with an interrupted run, on as many workers as you like.",
        "shoestring.commands.resume:resume",
        (RUN, SETS, TOML_FILES, RUNS_DIR, AS_JSON),
    ),
    Command(
        "infer",
        "Run models over any amount of data; each row exactly once.",
        "shoestring.commands.infer:infer",
        (*INFER_OPTIONS, SETS, TOML_FILES, NAME, RUNS_DIR, DRY_RUN, AS_JSON),
    ),
    Command(
        "generate",
        "Let the model of a run go on with a text.",
        "shoestring.commands.generate:generate",
        (RUN, *GENERATE_OPTIONS, RUNS_DIR, AS_JSON),
    ),
    Command(
        "evaluate",
        "Score the model of a run on its held-out data.",
        "shoestring.commands.evaluate:evaluate",
        (RUN, RUNS_DIR, AS_JSON),
    ),
    Command("runs", "List the runs.", "shoestring.commands.runs:runs", (RUNS_DIR, AS_JSON)),
    Command(
        "report",
        "Write the page that explains a run.",
        "shoestring.commands.report:report",
        (RUN, VERIFY, RUNS_DIR, AS_JSON),
    ),
    Command(
        "plan",
        "Show what a recipe would do here, with the alternatives, without starting it.",
        "shoestring.commands.plan:plan",
        (RECIPE, SETS, TOML_FILES, PICTURE, AS_JSON),
    ),
    Command(
        "probe",
        "Measure what the machines here can compute and how fast their links are.",
        "shoestring.commands.probe:probe",
        (*PROBE_OPTIONS, AS_JSON),
    ),
    Command(
        "sim",
        "Break a simulated cluster in seeded ways and check that nothing is lost or doubled.",
        "shoestring.sim.command:sim",
        (*SIM_OPTIONS, AS_JSON),
    ),
    Command(
        "export",
        "Write the model of a run as safetensors with its configuration and tokenizer.",
        "shoestring.commands.export:export",
        (RUN, OUTPUT, RUNS_DIR, AS_JSON),
    ),
)


def load_target(target: str) -> Callable[..., int]:
    """The function that "module:function" names."""
    module, _, function = target.partition(":")
    found: Callable[..., int] = getattr(importlib.import_module(module), function)
    return found


def dispatch(target: str, params: dict[str, Any]) -> int:
    """Call a command's function; what a user can meet becomes a message and an exit code."""
    try:
        return load_target(target)(**params)
    except ShoestringError as error:
        _show_error(error, bool(params["as_json"]))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE


def build() -> click.Group:
    """The command line as a click group."""
    group = click.Group(
        "shoestring",
        help="Trains, aligns, evaluates and runs models on the hardware you have.",
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_show_version,
                help="Show the version.",
            )
        ],
    )
    for command in COMMANDS:
        group.add_command(_click_command(command))
    return group


def main() -> None:
    """Entry point of `shoestring` and `python -m shoestring`."""
    build()(prog_name="shoestring")


def _click_command(command: Command) -> click.Command:
    def call(**params: Any) -> None:
        sys.exit(dispatch(command.target, params))

    return click.Command(command.name, callback=call, params=list(command.params), help=command.help)


def _show_error(error: ShoestringError, as_json: bool) -> None:
    if as_json:
        fields = {
            "kind": type(error).__name__,
            "what": error.what,
            "todo": error.todo,
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps({"error": fields}))
    else:
        click.secho(error.what, fg="red", bold=True, err=True)
        click.echo(f"what to do: {error.todo}", err=True)


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"shoestring {__version__}")
        context.exit()
