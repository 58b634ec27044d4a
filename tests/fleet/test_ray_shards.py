"""Jobs over rows on Ray, inside a network namespace that has nothing but `lo`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoestring.base.clock import SystemClock
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.supervisor import Interrupts, Supervisor
from tests.fleet.conformance import Transport, Watch, ignore
from tests.fleet.namespaces import INSIDE, run_inside
from tests.fleet.shard_conformance import ShardProcessConformance

HERE = Path(__file__)

if os.environ.get(INSIDE):
    import ray

    from shoestring.fleet.ray_fleet import RayHost

    class RayTransport(Transport):
        host: RayHost

        def run(self, launch: Launch, watch: Watch = ignore, interrupts: Interrupts | None = None) -> Outcome:
            clock = SystemClock()
            self.host = RayHost(launch, clock)
            return Supervisor(launch.fleet.members, self.host, clock, watch, interrupts or Interrupts()).run()

        def kill_coordinator(self) -> None:
            self.host.kill_coordinator()

    @pytest.fixture(scope="module")
    def cluster() -> Iterator[None]:
        """One cluster for all tests: starting one takes seconds."""
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()

    class TestRay(ShardProcessConformance):
        @pytest.fixture
        def transport(self, cluster: None) -> Transport:
            return RayTransport()

else:

    @pytest.mark.ray
    @pytest.mark.faults
    @pytest.mark.long
    @pytest.mark.timeout(300)
    def test_jobs_over_rows_on_ray_inside_a_namespace() -> None:
        assert " passed" in run_inside(HERE, 280.0)
