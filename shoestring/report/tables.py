"""What of a record becomes which table, for any job: found by shape, not by name (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from shoestring.report.record_view import TOLD, Event, Moment, RecordView

META = frozenset({"kind", "wall_s", "source"})
LONG_TEXT_CHARS = 160
SHOWN_MOMENTS = 500
STRATEGY_COLUMNS = (
    ("step", "step_s", "duration"),
    ("compute", "compute_s", "duration"),
    ("network", "communication_s", "duration"),
    ("waiting for it", "exposed_s", "duration"),
    ("memory of a worker", "memory_bytes", "bytes"),
    ("of it states", "states_bytes", "bytes"),
    ("through a card", "card_bytes", "bytes"),
    ("after a lost worker", "survives", "text"),
)
Path = tuple[Any, ...]


@dataclass(frozen=True)
class Entry:
    """One value of the record and the way to it: `path` is (event index, key, ...)."""

    path: Path
    value: Any

    @property
    def key(self) -> str:
        """The last key."""
        return str(self.path[-1])


@dataclass(frozen=True)
class Comparison:
    """Things that are measured alike: name of the measure, (path of the label, label, value entry)."""

    title: Path
    rows: tuple[tuple[Entry, Entry], ...]


@dataclass(frozen=True)
class Facts:
    """The fields of an event by shape."""

    numbers: tuple[Entry, ...] = ()
    texts: tuple[Entry, ...] = ()
    long_texts: tuple[Entry, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    tables: tuple[Entry, ...] = ()

    @property
    def measures(self) -> list[Entry]:
        """The numbers that say how good something is: fractions, that are neither times nor sizes."""
        return [
            e for e in self.numbers if isinstance(e.value, float) and not e.key.endswith(("_s", "_bytes"))
        ]


def facts_of(view: RecordView, index: int | None, leave_out: frozenset[str] = frozenset()) -> Facts:
    """Sort the fields of an event: numbers, texts, comparisons (name -> number), tables (list of rows).

    Args:
        leave_out: fields that are shown elsewhere.
    """
    if index is None:
        return Facts()
    numbers, texts, long_texts, comparisons, tables = [], [], [], [], []
    for entry in entries(view.events[index], (index,)):
        value = entry.value
        if entry.key in leave_out:
            continue
        if _is_number(value):
            numbers.append(entry)
        elif isinstance(value, str) and (len(value) > LONG_TEXT_CHARS or "\n" in value):
            long_texts.append(entry)
        elif _is_comparison(value):
            rows = entries(value, entry.path)
            comparisons.append(Comparison(entry.path, tuple((Entry(r.path, r.key), r) for r in rows)))
        elif isinstance(value, dict):
            nested = [item for item in flat(value, entry.path) if not isinstance(item.value, dict)]
            texts += [item for item in nested if not is_table(item.value)]
            tables += [item for item in nested if is_table(item.value)]
        elif is_table(value):
            tables.append(entry)
        else:
            texts.append(entry)
    return Facts(tuple(numbers), tuple(texts), tuple(long_texts), tuple(comparisons), tuple(tables))


def evaluations(view: RecordView) -> tuple[Comparison, ...]:
    """The `evaluation` events with a name and a value, those with the same unit beside one another.

    Of several with one name, after a resume, the last counts.
    """
    groups: dict[str, dict[str, tuple[Entry, Entry]]] = {}
    titles: dict[str, Path] = {}
    for index in view.of("evaluation"):
        event = view.events[index]
        if "name" not in event or not _is_number(event.get("value")):
            continue
        title_key = next((key for key in ("measure", "unit") if isinstance(event.get(key), str)), "value")
        group = str(event[title_key]) if title_key != "value" else "value"
        titles[group] = (index, title_key)
        pair = (Entry((index, "name"), str(event["name"])), Entry((index, "value"), event["value"]))
        groups.setdefault(group, {})[str(event["name"])] = pair
    return tuple(Comparison(titles[name], tuple(rows.values())) for name, rows in groups.items())


def comparisons(view: RecordView) -> tuple[Comparison, ...]:
    """All comparisons of the run: its evaluations, then those in its result."""
    return (*evaluations(view), *facts_of(view, view.last("result")).comparisons)


def entries(owner: Event, path: Path) -> list[Entry]:
    """The fields of a dict, without those that every event has."""
    return [Entry((*path, key), value) for key, value in owner.items() if len(path) > 1 or key not in META]


def flat(owner: Any, path: Path) -> list[Entry]:
    """The leaves of nested dicts, in order."""
    if not isinstance(owner, dict) or not owner:
        return [Entry(path, owner)]
    return [leaf for key, value in owner.items() for leaf in flat(value, (*path, key))]


def columns(rows: list[Any]) -> dict[str, int]:
    """All keys of a list of dicts, in order of their first use -> the first row that has it."""
    found: dict[str, int] = {}
    for n, row in enumerate(rows):
        for key in row:
            found.setdefault(key, n)
    return found


def is_table(value: Any) -> bool:
    """A list of dicts, not empty."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def changed_settings(view: RecordView) -> list[tuple[Entry, Entry]]:
    """(before, after) of every setting that a resume changed."""
    runs = [index for index in view.of("run") if isinstance(view.events[index].get("settings"), dict)]
    found = []
    for old, new in pairwise(runs):
        before = {entry.path[1:]: entry for entry in flat(view.events[old]["settings"], (old, "settings"))}
        for entry in flat(view.events[new]["settings"], (new, "settings")):
            known = entry.path[1:] in before
            if known and before[entry.path[1:]].value != entry.value:
                found.append((before[entry.path[1:]], entry))
    return found


def alternatives(view: RecordView) -> tuple[Entry, ...]:
    """The rows of the last plan's alternatives."""
    index = view.last("plan")
    rows = view.events[index].get("alternatives") if index is not None else None
    if index is None or not is_table(rows) or not isinstance(rows, list):
        return ()
    return tuple(Entry((index, "alternatives", n), row) for n, row in enumerate(rows))


def chosen(view: RecordView) -> Entry | None:
    """The alternative that was taken: the plan's `choice` by name, else the one without objection."""
    rows = alternatives(view)
    if not rows:
        return None
    choice = view.events[rows[0].path[0]].get("choice")
    named = [row for row in rows if choice is not None and row.value.get("name") == choice]
    unopposed = [row for row in rows if "rejected" in row.value and not row.value["rejected"]]
    return next(iter(named or unopposed), None)


def sharding(view: RecordView) -> Entry | None:
    """The last plan's weighing of strategies; None where there was none, or one worker holds everything."""
    index = view.last("plan")
    made = view.events[index].get("sharding") if index is not None else None
    if index is None or not isinstance(made, dict) or not is_table(made.get("rows")):
        return None
    if view.events[index].get("workers") == 1:
        return None
    return Entry((index, "sharding"), made)


def strategies(view: RecordView) -> tuple[Entry, ...]:
    """The rows of `sharding`: what could be had first, fastest first; other names of the same last."""
    found = sharding(view)
    if found is None:
        return ()
    rows = [Entry((*found.path, "rows", n), row) for n, row in enumerate(found.value["rows"])]
    return tuple(sorted(rows, key=lambda row: _rank(row.value)))


def shown_moments(view: RecordView) -> tuple[Moment, ...]:
    """The timeline's rows for the page: all, or the `SHOWN_MOMENTS` most telling of them, in order."""
    ranked = sorted(enumerate(view.moments), key=lambda item: (TOLD.index(item[1].kind), item[0]))
    return tuple(moment for _, moment in sorted(ranked[:SHOWN_MOMENTS], key=lambda item: item[0]))


def _rank(row: Event) -> tuple[bool, bool, float]:
    seconds = row.get("step_s")
    return (
        bool(row.get("same_as")),
        not row.get("built"),
        float(seconds or 0.0) if _is_number(seconds) else 0.0,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_comparison(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 1 and all(_is_number(item) for item in value.values())
