"""Jobs over rows on Ray, inside a network namespace that has nothing but `lo`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fleet.namespaces import INSIDE, run_inside
from tests.fleet.shard_conformance import ShardProcessConformance

HERE = Path(__file__)

if os.environ.get(INSIDE):
    from tests.fleet.ray_transport import OnRay

    class TestRay(OnRay, ShardProcessConformance):
        pass

else:

    @pytest.mark.ray
    @pytest.mark.faults
    @pytest.mark.long
    @pytest.mark.timeout(300)
    def test_jobs_over_rows_on_ray_inside_a_namespace() -> None:
        assert " passed" in run_inside(HERE, 280.0)
