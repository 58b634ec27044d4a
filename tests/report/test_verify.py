"""Whatever is changed on a page is found; a page that was left alone has nothing to find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shoestring.base.errors import RecordError
from shoestring.base.record import RunRecord, read_events
from shoestring.report.verify import Check, verify_page
from tests.report.records import LIBRARY

# What a forger could do: (name, pattern on the page, replacement, what the finding names).
FORGERIES = [
    ("the text of a number", r'(<data data-formula="steps"[^>]*>)120<', r"\g<1>121<", "steps()"),
    ("its value", r'(<data data-formula="steps"[^>]* value=)"120"', r'\g<1>"121"', "steps(), value"),
    (
        "its explanation",
        r"mean loss of the last 20 steps",
        "mean loss of the last 10 steps",
        "metric_last(loss), title",
    ),
    (
        "its range of events",
        r'(data-formula="steps"[^>]*data-events=)"\d+-\d+"',
        r'\g<1>"0-1"',
        "steps(), data-events",
    ),
    (
        "another formula",
        r'data-formula="total" data-args="\[&#34;samples&#34;\]"',
        'data-formula="steps" data-args="[]"',
        "steps()",
    ),
    (
        "a formula that is none",
        r'data-formula="redone"|data-formula="workers"',
        'data-formula="made_up"',
        "made_up()",
    ),
    (
        "arguments that are none",
        r'data-formula="steps" data-args="\[\]"',
        'data-formula="steps" data-args="["',
        "steps([)",
    ),
    (
        "another format",
        r'(data-formula="exchange_share"[^>]*data-format=)"percent"',
        r'\g<1>"duration"',
        "exchange_share()",
    ),
    ("a quoted reason", r"w1 is gone \(signal 9\): restart", "w1 is gone (signal 9): no restart", "reason"),
    ("a word of the sample", r"return 42", "return 43", "sample"),
    ("a point of a curve", r'"per_s":16384\.0', '"per_s":26384.0', "chart rate:tokens"),
    ("a mark of the timeline", r'"kind":"fault"', '"kind":"checkpoint"', "chart"),
    ("a chart that is none", r'data-chart="timeline"', 'data-chart="made_up"', "chart made_up"),
    ("a broken chart", r'<script type="application/json">\{', '<script type="application/json">{{', "chart"),
    ("a typed number", r"<h2>Result</h2>", "<h2>Result: 99% better</h2>", "99% better"),
    ("a number in a tooltip", r"<h2>Data</h2>", '<h2 title="all 12 files">Data</h2>', "all 12 files"),
    ("a number in a foreign alphabet", r"<h2>Data</h2>", "<h2>Data: ٣ files</h2>", "٣"),
    ("a number in the title", r"<title>Shoestring run", "<title>Shoestring run 7", "Shoestring run 7"),
    (
        "a figure removed",
        r'<data data-formula="redone"[^>]*>.*?</data>|<data data-formula="step_median"[^>]*>.*?</data>',
        "",
        "step_median()",
    ),
    ("a chart removed", r'(?s)<figure data-chart="plan">.*?</figure>', "", "chart plan"),
    ("a script more", r"</body>", "<script>document.title = 1</script></body>", "scripts of the page"),
    ("a script changed", r"/\* no charts are drawn", "/* some charts are drawn", "scripts of the page"),
    ("a style more", r"</head>", '<style>data::after { content: "0" }</style></head>', "styles of the page"),
    ("another record", r'(name="shoestring-record" content="\d+ )\w{4}', r"\g<1>0000", "the record"),
    ("a shorter record", r'(name="shoestring-record" content=")\d+', r"\g<1>20", "the record"),
    ("no record", r'<meta name="shoestring-record"[^>]*>', "", "the record"),
]


def wrong(run_dir: Path) -> list[Check]:
    """What does not agree."""
    return [check for check in verify_page(run_dir, run_dir / "report.html", LIBRARY) if not check.ok]


def test_an_untouched_page_recomputes_whole(run_dir: Path) -> None:
    checks = verify_page(run_dir, run_dir / "report.html", LIBRARY)
    assert [check for check in checks if not check.ok] == []
    names = {check.figure for check in checks}
    assert {"steps()", "rate(tokens)", "worker(w1, share)", "chart timeline", "reform_max()"} <= names
    assert len(checks) > 150


@pytest.mark.parametrize(
    ("pattern", "replacement", "named"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES]
)
def test_what_was_tampered_with_is_found(run_dir: Path, pattern: str, replacement: str, named: str) -> None:
    page = run_dir / "report.html"
    before = page.read_text(encoding="utf-8")
    forged, count = re.subn(pattern, replacement, before, count=1)
    assert count == 1 and forged != before
    page.write_text(forged, encoding="utf-8")
    assert any(named in check.figure for check in wrong(run_dir)), wrong(run_dir)


def test_every_single_number_is_guarded(run_dir: Path) -> None:
    """Change the text of each number in turn: all of them are found."""
    page = run_dir / "report.html"
    before = page.read_text(encoding="utf-8")
    shown = list(re.finditer(r"<data [^>]*>([^<]*)</data>", before))
    assert len(shown) > 60
    forged, end = [], 0
    for match in shown:
        digit = next(i for i in range(match.start(1), match.end(1)) if before[i].isdigit())
        forged += [before[end:digit], str((int(before[digit]) + 1) % 10)]
        end = digit + 1
    page.write_text("".join([*forged, before[end:]]), encoding="utf-8")
    assert len(wrong(run_dir)) == len(shown)


def test_a_run_that_went_on_still_verifies(run_dir: Path) -> None:
    record = RunRecord(run_dir / "events.jsonl", "test")
    record.append("fault", reason="later", step=120)
    record.close()
    assert wrong(run_dir) == []


def test_a_record_that_was_changed_is_found(run_dir: Path) -> None:
    log = run_dir / "events.jsonl"
    events = read_events(log).events
    log.unlink()
    record = RunRecord(log, "test")
    for event in events:
        changed = {"batch": event["batch"] + 1} if event["kind"] == "step" and event["step"] == 3 else {}
        fields = {k: v for k, v in event.items() if k not in ("kind", "wall_s", "source")}
        record.append(event["kind"], **(fields | changed))
    record.close()
    assert any("record" in check.figure for check in wrong(run_dir))


def test_a_page_that_cannot_be_read_is_an_error(run_dir: Path) -> None:
    (run_dir / "report.html").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RecordError):
        verify_page(run_dir, run_dir / "report.html", LIBRARY)
