"""The frame of the command line: what it loads, how it fails, how it exits."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoestring import __version__, cli
from shoestring.base.errors import ConfigError

HEAVY = {
    "torch",
    "ray",
    "pydantic",
    "numpy",
    "msgspec",
    "sqlalchemy",
    "rich",
    "pyarrow",
    "shoestring.commands",
}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from shoestring.cli import main\n"
        f"sys.argv = ['shoestring', *{arguments!r}]\n"
        "try:\n    main()\n"
        "finally:\n    print('LOADED', *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.partition("LOADED")[2].split())
    assert "click" in loaded, "the list of modules did not come through"
    assert loaded.isdisjoint(HEAVY)


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoestring", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"shoestring {__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_leads_to_a_function_that_takes_its_parameters(command: cli.Command) -> None:
    function = cli.load_target(command.target)
    given = {param.name for param in command.params}
    assert set(inspect.signature(function).parameters) == given
    assert "as_json" in given


def _with_target(monkeypatch: pytest.MonkeyPatch, body: str, tmp_path: Path) -> None:
    """Let `shoestring runs` lead to a module with this body."""
    (tmp_path / "cli_target.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_target", raising=False)
    runs = next(command for command in cli.COMMANDS if command.name == "runs")
    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("runs", "", "cli_target:main", runs.params),))


FAILING = """
from shoestring.base.errors import ConfigError
def main(**params):
    raise ConfigError('it broke', 'mend it')
"""


def test_an_error_is_two_lines_and_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_target(monkeypatch, FAILING, tmp_path)
    result = CliRunner().invoke(cli.build(), ["runs"])
    assert result.exit_code == ConfigError.exit_code
    assert result.stderr == "it broke\nwhat to do: mend it\n"
    assert result.stdout == ""


def test_an_error_is_json_for_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_target(monkeypatch, FAILING, tmp_path)
    result = CliRunner().invoke(cli.build(), ["runs", "--json"])
    assert json.loads(result.stdout) == {
        "error": {"kind": "ConfigError", "what": "it broke", "todo": "mend it", "exit_code": 2}
    }
    assert result.exit_code == 2


def test_parameters_and_exit_code_come_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = "def main(runs_dir, as_json):\n    print(repr(str(runs_dir)), as_json)\n    return 9"
    _with_target(monkeypatch, body, tmp_path)
    result = CliRunner().invoke(cli.build(), ["runs", "--runs-dir", "elsewhere"])
    assert (result.stdout, result.exit_code) == ("'elsewhere' False\n", 9)


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_target(monkeypatch, "def main(**params): raise KeyboardInterrupt", tmp_path)
    assert CliRunner().invoke(cli.build(), ["runs"]).exit_code == 130


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _with_target(monkeypatch, "def main(**params): raise ZeroDivisionError", tmp_path)
    assert isinstance(CliRunner().invoke(cli.build(), ["runs"]).exception, ZeroDivisionError)


def test_an_unknown_command_or_option_exits_with_2() -> None:
    assert CliRunner().invoke(cli.build(), ["rum"]).exit_code == 2
    assert CliRunner().invoke(cli.build(), ["runs", "--jsn"]).exit_code == 2
