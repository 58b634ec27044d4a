"""A number on the page with its derivation beside it: the one way by which values come onto the page.

Every mark is an element with the attributes `data-figure` (its name), `data-formula`, `data-args`,
`data-format`, `data-events` (first-last event that it was made from) and `value`. Text that is
quoted from the record is a mark too, so that nothing else on the page may hold a digit (source: ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from markupsafe import Markup, escape

from shoestring.report import formulas, shown
from shoestring.report.record_view import RecordView

# What a formula may raise when the record does not hold what it needs.
UNKNOWN = (LookupError, ValueError, TypeError, ArithmeticError, StopIteration, AttributeError)
_QUOTES = frozenset({"text", "label", "plain", "brief", "excerpt"})


@dataclass(frozen=True)
class Mark:
    """An element: its attributes in order, and its text."""

    attributes: dict[str, str]
    text: str


def make(view: RecordView, formula: str, args: tuple[Any, ...], format_: str) -> Mark:
    """The mark of a value.

    Raises:
        LookupError, ValueError, TypeError, ArithmeticError, AttributeError, StopIteration:
            the record does not hold what the formula needs (`UNKNOWN`).
    """
    value = formulas.evaluate(view, formula, args)
    text = shown.show(format_, value)
    attributes = {
        "data-formula": formula,
        "data-args": msgspec.json.encode(args).decode(),
        "data-format": format_,
    }
    if format_ not in _QUOTES:
        first, last = formulas.event_range(view, formula, args)
        about = formulas.FORMULAS[formula].about.format(*args)
        attributes |= {
            "data-figure": f"{formula}({', '.join(str(arg) for arg in args)})",
            "data-events": f"{first}-{last}",
            "value": msgspec.json.encode(value).decode(),
            "title": f"{about}: {value} (events {first} to {last} of the record)",
        }
    return Mark(attributes, text)


class Marker:
    """Writes marks for a template."""

    def __init__(self, view: RecordView) -> None:
        self._view = view

    def __call__(self, format_: str, formula: str, *args: Any) -> Markup:
        """The element of a value; `not known` where the record does not hold it."""
        try:
            mark = make(self._view, formula, args, format_)
        except UNKNOWN:
            return Markup('<span class="unknown">not known</span>')
        attributes = Markup(" ").join(Markup('{}="{}"').format(k, v) for k, v in mark.attributes.items())
        tag = "data" if "value" in mark.attributes else "span"
        return Markup("<{} {}>{}</{}>").format(Markup(tag), attributes, escape(mark.text), Markup(tag))

    def knows(self, formula: str, *args: Any) -> bool:
        """Whether the record holds what a formula needs."""
        try:
            formulas.evaluate(self._view, formula, args)
        except UNKNOWN:
            return False
        return True

    def entry(self, entry: Any) -> Markup:
        """A field of the record, in the format that fits it."""
        return self(shown.format_for(entry.key, entry.value), "field", *entry.path)

    def quote(self, *path: Any) -> Markup:
        """Text of the record, word by word (cut when very long)."""
        return self("excerpt", "field", *path)

    def name(self, *path: Any) -> Markup:
        """The name of a field, as words."""
        return self("label", "key", *path)
