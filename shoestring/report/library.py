"""Vega, Vega-Lite and vega-embed as one script to put into a page, kept between runs (source: ours).

vl-convert carries the libraries and bundles them offline; that takes seconds, so the bundle is
kept in the user's cache directory, under the version it comes from and with its checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import vl_convert

from shoestring.base.files import write_whole

SNIPPET = "window.vegaEmbed = vegaEmbed;"


def vega_bundle() -> str:
    """JavaScript that defines `vegaEmbed`, made by vl-convert; takes seconds, needs no network."""
    bundle = vl_convert.javascript_bundle(SNIPPET)
    # In a page, this ends no script element and has no line ends that a parser would change.
    bundle = re.sub(r"<(/script|!--)", r"\\x3c\1", bundle, flags=re.IGNORECASE)
    return bundle.replace("\r\n", "\n").replace("\r", "\n")


def vega_library(cache_dir: Path | None = None, make: Callable[[], str] = vega_bundle) -> str:
    """What `make` gives, from the cache where it is there.

    A cache that cannot be written or does not match its checksum is passed over: the bundle is made anew.
    """
    folder = cache_dir or _cache_dir()
    path = folder / f"vega-{version('vl-convert-python')}.js"
    kept = _read(path)
    if kept:
        return kept
    bundle = make()
    with contextlib.suppress(OSError):  # then the next page makes it again
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{_checksum(bundle)}\n{bundle}".encode())
    return bundle


def _read(path: Path) -> str:
    try:
        checksum, _, bundle = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return ""
    return bundle if bundle and _checksum(bundle) == checksum else ""


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cache_dir() -> Path:
    base = os.environ["XDG_CACHE_HOME"] if os.environ.get("XDG_CACHE_HOME") else str(Path.home() / ".cache")
    return Path(base) / "shoestring"
