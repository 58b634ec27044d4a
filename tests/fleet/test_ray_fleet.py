"""The conformance suite on Ray, inside a network namespace that has nothing but `lo`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fleet.conformance import ProcessConformance
from tests.fleet.namespaces import INSIDE, run_inside

HERE = Path(__file__)

if os.environ.get(INSIDE):
    from tests.fleet.ray_transport import OnRay

    class TestRay(OnRay, ProcessConformance):
        pass

else:

    @pytest.mark.ray
    @pytest.mark.timeout(300)
    def test_ray_conforms_inside_a_namespace() -> None:
        assert " passed" in run_inside(HERE, 280.0)
