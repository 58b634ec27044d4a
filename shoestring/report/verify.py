"""Recompute every number on a page from the record (source: ours).

Nothing of the page is trusted: each mark is evaluated again from its formula and arguments, each
chart is made again, a digit outside of a mark is an error, and so is a mark that the page should
have and has not, and a script or style that is not ours (it could change what is shown).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec

from shoestring.base.errors import RecordError
from shoestring.base.record import Events, read_events
from shoestring.report import marks
from shoestring.report.page import LOG, asset, render
from shoestring.report.record_view import RecordView, fingerprint, prefix, view_of

SHOWN_CHARS = 100
_LIBRARY_HOLDER = "/* the library that draws */"
_DATA_TYPE = "application/json"
_READ_ALOUD = frozenset({"title", "aria-label", "alt", "placeholder"})
_VOID = frozenset({"meta", "link", "br", "hr", "img", "input", "wbr"})


@dataclass(frozen=True)
class Check:
    """One figure: what the page says, what the record gives, and whether they agree."""

    figure: str
    on_page: str
    recomputed: str
    ok: bool


@dataclass
class Page:
    """What stands on a page, by kind."""

    marks: list[marks.Mark] = field(default_factory=list)
    charts: list[tuple[str, str]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    record: str = ""


def verify_page(run_dir: Path, page: Path, library: str | None = None) -> list[Check]:
    """Every number on the page against the record as it was when the page was made.

    Args:
        library: the script that draws the charts, which the page must hold; made when not given.

    Raises:
        RecordError: the page or the record cannot be read.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"cannot read the page {page}: {error}", "make it again: shoestring report RUN"
        ) from error
    if library is None:
        from shoestring.report.library import vega_library  # seconds to load: only who needs it pays

        library = vega_library()
    found, log = parse(text), read_events(run_dir / LOG)
    known, checks = _record_of(found, log)
    view = view_of(known)
    checks += [_check_mark(view, mark) for mark in found.marks]
    expected = parse(render(known, _LIBRARY_HOLDER))
    checks += [_check_chart(dict(expected.charts), name, spec) for name, spec in found.charts]
    checks += _check_whole(expected, found)
    checks += [Check(f"a number without derivation: {loose}", loose, "", False) for loose in found.loose]
    return [*checks, *_check_code(found, library)]


def parse(text: str) -> Page:
    """Take a page apart."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.page


def _record_of(page: Page, log: Events) -> tuple[Events, list[Check]]:
    """The events that the page was made from, and whether they are still the same."""
    count = page.record.partition(" ")[0]
    if not count.isdigit():
        return log, [Check("the record that the page was made from", page.record or "not named", "", False)]
    known = prefix(log, int(count))
    now = f"{len(known.events)} {fingerprint(known)}"
    return known, [Check("the record that the page was made from", page.record, now, page.record == now)]


def _check_mark(view: RecordView, mark: marks.Mark) -> Check:
    name = _name(mark)
    try:
        args = tuple(json.loads(mark.attributes["data-args"]))
        made = marks.make(view, mark.attributes["data-formula"], args, mark.attributes["data-format"])
    except marks.UNKNOWN as error:
        return Check(name, mark.text[:SHOWN_CHARS], f"not in the record: {error!r}", False)
    return _compare(name, mark, made)


def _compare(name: str, mark: marks.Mark, made: marks.Mark) -> Check:
    if mark == made:
        return Check(name, mark.text[:SHOWN_CHARS], made.text[:SHOWN_CHARS], True)
    if mark.text != made.text:
        at = next((i for i, (a, b) in enumerate(zip(mark.text, made.text, strict=False)) if a != b), 0)
        start = max(0, at - SHOWN_CHARS // 2)
        window = slice(start, start + SHOWN_CHARS)
        return Check(name, mark.text[window], made.text[window], False)
    keys = sorted(mark.attributes.keys() | made.attributes.keys())
    key = next(key for key in keys if mark.attributes.get(key) != made.attributes.get(key))
    return Check(f"{name}, {key}", str(mark.attributes.get(key)), str(made.attributes.get(key)), False)


def _check_chart(made: dict[str, str], name: str, text: str) -> Check:
    """A chart with all its data against the one that the record gives."""
    figure = f"chart {name}"
    if name not in made:
        return Check(figure, text[:SHOWN_CHARS], "not in the record", False)
    try:
        shown = json.loads(text)
    except json.JSONDecodeError as error:
        return Check(figure, text[:SHOWN_CHARS], f"the page holds no chart there: {error}", False)
    difference = _difference(shown, json.loads(made[name]), "")
    if difference is None:
        size = f"{_numbers(shown)} numbers"
        return Check(figure, size, size, True)
    place, on_page, recomputed = difference
    return Check(f"{figure}{place}", on_page, recomputed, False)


def _difference(one: Any, other: Any, place: str) -> tuple[str, str, str] | None:
    """Where two JSON values first differ: (path, this, other)."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        found = (_difference(one[key], other[key], f"{place}.{key}") for key in one)
        return next((item for item in found if item is not None), None)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found = (_difference(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next((item for item in found if item is not None), None)
    if type(one) is type(other) and one == other:
        return None
    return place, json.dumps(one)[:SHOWN_CHARS], json.dumps(other)[:SHOWN_CHARS]


def _numbers(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(_numbers(item) for item in (value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, int | float) and not isinstance(value, bool))


def _check_whole(expected: Page, found: Page) -> list[Check]:
    """Figures that were taken from the page."""
    names = Counter(_name(mark) for mark in expected.marks)
    names.subtract(Counter(_name(mark) for mark in found.marks))
    missing = [name for name, count in names.items() if count > 0]
    charts = {name for name, _ in expected.charts} - {name for name, _ in found.charts}
    missing += [f"chart {name}" for name in sorted(charts)]
    texts = {_name(mark): mark.text for mark in expected.marks}
    return [
        Check(name, "not on the page", texts[name][:SHOWN_CHARS] if name in texts else "a chart", False)
        for name in missing
    ]


def _check_code(page: Page, library: str) -> list[Check]:
    """Scripts and styles decide what is seen, so they have to be ours, all and in order."""
    checks = []
    for what, here, ours in (
        ("scripts", page.scripts, [library, asset("page.js")]),
        ("styles", page.styles, [asset("page.css")]),
    ):
        on_page, expected = (
            hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12] for texts in (here, ours)
        )
        checks.append(Check(f"{what} of the page", on_page, expected, here == ours))
    return checks


def _name(mark: marks.Mark) -> str:
    """The formula with its arguments, from what the page says of itself."""
    formula, args = (mark.attributes.get(key) or "?" for key in ("data-formula", "data-args"))
    try:
        values = msgspec.json.decode(args)
    except msgspec.DecodeError:
        return f"{formula}({args})"
    return f"{formula}({', '.join(str(value) for value in values)})" if isinstance(values, list) else formula


class _Reader(HTMLParser):
    """Sorts a page into marks, charts, code, and digits that stand for themselves."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[tuple[str, dict[str, str]]] = []
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        if tag == "meta" and attributes.get("name") == "shoestring-record":
            self.page.record = attributes["content"]
        if "data-formula" not in attributes:
            for key in _READ_ALOUD & attributes.keys():
                self._note_loose(attributes[key])
        if tag in _VOID:
            return
        self._flush()
        self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        self._flush()
        while self._open:
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def close(self) -> None:
        """End of the page."""
        super().close()
        self._flush()

    def _flush(self) -> None:
        text, self._text = "".join(self._text), []
        tag, attributes = self._open[-1] if self._open else ("", {})
        if "data-formula" in attributes:
            self.page.marks.append(marks.Mark(attributes, text))
        elif tag == "script" and attributes.get("type") == _DATA_TYPE:
            owners = [outer["data-chart"] for _, outer in self._open if "data-chart" in outer]
            self.page.charts.append((owners[-1] if owners else "without a name", text))
        elif tag == "script":
            self.page.scripts.append(text)
        elif tag == "style":
            self.page.styles.append(text)
        else:
            self._note_loose(text)

    def _note_loose(self, text: str) -> None:
        if any(character.isdigit() for character in text):
            self.page.loose.append(" ".join(text.split())[:SHOWN_CHARS])
