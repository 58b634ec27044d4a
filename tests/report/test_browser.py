"""The page in a real browser that has no network, with the real Vega."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shoestring.report.library import vega_library
from shoestring.report.page import write_page
from shoestring.report.picture import browse, find_browser
from shoestring.report.verify import parse, verify_page
from tests.report.records import whole_run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every browser that is started from here on runs in a network namespace without any interface up."""
    browser = find_browser()
    if not browser:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    unshare = shutil.which("unshare")
    alone = [unshare, "--map-root-user", "--net"] if unshare else []
    if not alone or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces, so a network could hide what is missing")
    wrapper = tmp_path / "bin" / Path(browser).name
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(map(str, alone))} {browser} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.browser
@pytest.mark.usefixtures("without_network")
def test_all_charts_are_drawn_without_any_network(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    whole_run(run_dir)
    library = vega_library()
    page = write_page(run_dir, library)
    text = page.read_text(encoding="utf-8")
    charts = parse(text).charts
    assert len(charts) == 10
    drawn = browse(page, "--dump-dom").stdout.decode()
    assert 'data-charts="drawn"' in drawn
    assert not re.search(r"could not be drawn: \w", drawn)
    assert drawn.count("<svg") - text.count("<svg") == len(charts)
    assert drawn.count("<path") - text.count("<path") > 50
    assert [check for check in verify_page(run_dir, page, library) if not check.ok] == []
    picture = tmp_path / "picture.png"
    browse(page, "--window-size=900,900", f"--screenshot={picture}")
    assert picture.read_bytes().startswith(PNG) and picture.stat().st_size > 20_000


@pytest.mark.browser
@pytest.mark.usefixtures("without_network")
def test_a_page_with_another_script_draws_nothing_and_says_so(tmp_path: Path) -> None:
    """The policy on the page lets only our two scripts run: the proof that it is in force."""
    whole_run(tmp_path)
    page = write_page(tmp_path, "/* no vega */")
    assert browse(page, "--dump-dom").stdout.decode().count("could not be drawn: ReferenceError") == 10
    forged = page.read_text(encoding="utf-8").replace("/* no vega */", "window.vegaEmbed = 1")
    page.write_text(forged, encoding="utf-8")
    drawn = browse(page, "--dump-dom").stdout.decode()
    assert drawn.count("could not be drawn: ReferenceError") == 10
