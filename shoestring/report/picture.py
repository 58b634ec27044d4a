"""A picture of a run's page, by headless Chromium: `make picture RUN=runs/demo-1` (source: ours)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shoestring.base.errors import RecordError, ShoestringError
from shoestring.report.page import write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DRAW_MS = 10_000
BROWSER_TIMEOUT_S = 90
SIZE = (1160, 1500)


def find_browser() -> str:
    """Path of an installed Chromium, or an empty string."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), "")


def browse(page: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Open a page in headless Chromium with a fresh profile and let its scripts end.

    Raises:
        RecordError: there is no Chromium, or it does not come to an end.
    """
    browser = find_browser()
    if not browser:
        raise RecordError("there is no Chromium on this machine", "install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={DRAW_MS}"]
        try:
            return subprocess.run(
                [*command, *arguments, page.resolve().as_uri()],
                capture_output=True, timeout=BROWSER_TIMEOUT_S, check=True,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise RecordError(f"Chromium could not draw {page}: {error}", "open the page by hand") from error


def take_picture(run_dir: Path, picture: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write the run's page and a PNG of its top, `size` (width, height) pixels; returns the PNG's path.

    Raises:
        RecordError: the record cannot be read, or the browser fails.
    """
    page = write_page(run_dir)
    picture.parent.mkdir(parents=True, exist_ok=True)
    browse(page, f"--window-size={size[0]},{size[1]}", f"--screenshot={picture.resolve()}")
    if not picture.exists():
        raise RecordError(f"Chromium wrote no picture {picture}", "check that its directory can be written")
    return picture


def main(arguments: list[str]) -> int:
    """`python -m shoestring.report.picture RUN_DIR PICTURE.png`."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m shoestring.report.picture RUN_DIR PICTURE.png\n")
        return 2
    try:
        picture = take_picture(Path(arguments[0]), Path(arguments[1]))
    except ShoestringError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{picture}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
