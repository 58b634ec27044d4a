"""A link that dies during a collective: a typed error within the time-out, and new rings once it is back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.lab import Lab, LabConfig
from tests.benchmarks.lab_helpers import needs_lab

WORKER = Path(__file__).parent / "partition_worker.py"


@pytest.mark.faults
@pytest.mark.exclusive
@needs_lab
def test_a_dead_link_is_a_lost_peer_and_a_healed_one_forms_again() -> None:
    lost: set[int] = set()
    with Lab(LabConfig(hosts=2, ranks=1)) as lab:

        def follow(rank: int, line: str) -> None:
            if line.startswith("sum") and not lost:
                lab.partition([0], [1])
            if line.startswith("lost"):
                lost.add(rank)
                if len(lost) == 2:
                    lab.heal()

        result = lab.run(
            [sys.executable, str(WORKER)], 100.0, env={"TORCH_CPP_LOG_LEVEL": "ERROR"}, on_line=follow
        )
    assert result.codes == (0, 0), result.outputs
    for output in result.outputs:
        lines = [line for line in output.splitlines() if line.startswith(("sum", "lost"))]
        assert [line.split()[0] for line in lines] == ["sum", "lost", "sum"], output
        assert lines[0] == lines[2] == "sum 3.0"
        assert float(lines[1].split()[1]) < 10.0
        assert "rank" in lines[1], "the error names who was lost"
