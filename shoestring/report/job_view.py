"""What a record says of a job over rows: curves, totals, what parts cost (source: ours).

Events: `rows` (how many are done), `pools` (those of one worker), `decision` with a `pool`, `trial`,
`summary`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from shoestring.report.record_view import Event, RecordView
from shoestring.report.series import BINS, REASON_CHARS, WORKER_BINS, Row, bins, rounded

HEARD_S = 30.0
"""A worker that has told nothing for so long has gone: its pools do not count any more."""
MARKED = 300
TELLING = ("rows", "summary")
"""Kinds of events that tell how many rows are done."""
COSTS = ("row_s", "cpu_share", "busy")


def is_job(view: RecordView) -> bool:
    """Whether the record is of a job over rows."""
    return any(view.of(kind) for kind in ("trial", "rows", "pools"))


def told(view: RecordView) -> int | None:
    """Index of the event that tells the newest totals."""
    found = [view.last(kind) for kind in TELLING]
    return max((index for index in found if index is not None), default=None)


def totals(view: RecordView) -> dict[str, int]:
    """`rows` (in the output), `failed`, and `files` where it is known.

    Raises:
        LookupError: nothing was told yet.
    """
    index = told(view)
    if index is None:
        raise LookupError("no event tells how many rows are done")
    return totals_of(view.events[index])


def totals_of(event: Event) -> dict[str, int]:
    """The same of one event, of a kind of `TELLING`."""
    found = {"rows": event["done"] if "done" in event else event["rows"], "failed": event["failed"]}
    return found | ({"files": event["shards"]} if "shards" in event else {})


def rate(view: RecordView) -> float:
    """Rows per second over all the time that the coordinator has worked; while it works, of late.

    Raises:
        LookupError: nothing was told yet.
    """
    index = told(view)
    if index is None:
        raise LookupError("no event tells how many rows are done")
    event = view.events[index]
    if "elapsed_s" in event:
        return rounded(event["rows"] / event["elapsed_s"])
    return rounded(event["rows_per_s"])


def done_curve(view: RecordView) -> list[Row]:
    """Rows of active time, rows done, rows with an error, rows per second."""
    found = [(view.at_s[i], view.events[i]) for i in view.of("rows")]
    rows = []
    for group in bins(len(found), BINS):
        at_s, event = found[group[-1]]
        if all(isinstance(event.get(key), int | float) for key in ("done", "failed", "rows_per_s")):
            at = {"at_s": rounded(at_s), "done": event["done"], "failed": event["failed"]}
            rows.append({**at, "per_s": rounded(event["rows_per_s"])})
    last = view.last("summary")
    event = view.events[last] if last is not None else {}
    if last is not None and rows and all(isinstance(event.get(key), int) for key in ("rows", "failed")):
        at = {"at_s": rounded(view.at_s[last]), "done": event["rows"], "failed": event["failed"]}
        rows.append({**at, "per_s": rows[-1]["per_s"]})
    return rows


def pool_names(view: RecordView) -> list[str]:
    """Of all pools, in the order of the flow."""
    names: dict[str, None] = {}
    for _, pools in _told_pools(view):
        names |= dict.fromkeys(str(pool["name"]) for pool in pools)
    return list(names)


def pool_curve(view: RecordView) -> list[Row]:
    """Rows of active time, pool, its processes over all workers, and their mean share of time at work."""
    found = list(_told_pools(view))
    latest: dict[str, tuple[float, list[Event]]] = {}
    rows = []
    for group in bins(len(found), WORKER_BINS):
        for place in group:
            index, pools = found[place]
            latest[str(view.events[index].get("worker"))] = (view.at_s[index], pools)
        now_s = view.at_s[found[group[-1]][0]]
        heard = [pools for at_s, pools in latest.values() if now_s - at_s <= HEARD_S]
        sums: dict[str, list[float]] = {}
        for pool in (pool for pools in heard for pool in pools):
            of_pool = sums.setdefault(str(pool["name"]), [0, 0.0, 0])
            of_pool[0] += pool["processes"]
            of_pool[1] += pool["busy"] * pool["processes"]
            of_pool[2] += pool["waiting"]
        rows += [
            {
                "at_s": rounded(now_s),
                "pool": name,
                "processes": int(processes),
                "busy": rounded(busy / processes) if processes else 0.0,
                "waiting": int(waiting),
            }
            for name, (processes, busy, waiting) in sums.items()
        ]
    return rows


def pool_marks(view: RecordView) -> list[Row]:
    """Decisions about pools: active time, pool, what, why; at most `MARKED`, the first ones."""
    rows = []
    for index in view.of("decision"):
        event = view.events[index]
        if "pool" in event:
            said = {"what": str(event.get("action")), "reason": str(event.get("reason"))[:REASON_CHARS]}
            rows.append({"at_s": rounded(view.at_s[index]), "pool": str(event["pool"]), **said})
    return rows[:MARKED]


def measured(view: RecordView, name: str, key: str) -> float:
    """The median of what a pool's workers told of `row_s`, `cpu_share` or `busy`, while it had work.

    Raises:
        LookupError: nobody told it.
    """
    if key not in COSTS:
        raise LookupError(f"nothing is known about a pool's {key}")
    known = [
        pool[key]
        for _, pools in _told_pools(view)
        for pool in pools
        if pool["name"] == name and pool["row_s"] > 0
    ]
    if not known:
        raise LookupError(f"nobody told what {name} costs")
    return rounded(statistics.median(known))


def trial_parts(view: RecordView) -> list[tuple[Any, ...]]:
    """Paths of the rows of the last trial's table."""
    index = view.last("trial")
    if index is None or not isinstance(view.events[index].get("parts"), list):
        return []
    return [(index, "parts", n) for n in range(len(view.events[index]["parts"]))]


def counted(view: RecordView, key: str) -> list[tuple[Any, ...]]:
    """Paths of the counts of `errors` or `not_numbers`, the largest first."""
    index = told(view)
    counts = view.events[index].get(key) if index is not None else None
    if not isinstance(counts, dict):
        return []
    return [(index, key, name) for name in sorted(counts, key=lambda name: (-counts[name], name))]


def _told_pools(view: RecordView) -> Iterator[tuple[int, list[Event]]]:
    """(event, its pools) of those that have all fields."""
    for index in view.of("pools"):
        pools = view.events[index].get("pools")
        if isinstance(pools, list) and all(_whole(pool) for pool in pools):
            yield index, pools


def _whole(pool: Any) -> bool:
    keys = ("processes", "waiting", *COSTS)
    return (
        isinstance(pool, dict)
        and "name" in pool
        and all(isinstance(pool.get(key), int | float) for key in keys)
    )
