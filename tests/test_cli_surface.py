"""The command line's surface is frozen: a change of it is meant, and stands in the diff."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import CliRunner

from shoestring import cli


def test_the_surface_is_the_recorded_one(golden: Callable[[str, str], None]) -> None:
    calls = [["--help"], *([command.name, "--help"] for command in cli.COMMANDS)]
    pages = []
    for arguments in calls:
        result = CliRunner().invoke(cli.build(), arguments, prog_name="shoestring", terminal_width=100)
        assert result.exit_code == 0, result.output
        pages.append(f"$ shoestring {' '.join(arguments)}\n{result.output}")
    golden("cli.txt", "\n".join(pages))
