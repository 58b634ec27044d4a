"""Ray as a transport of conformance suites; imported inside a namespace only (see `namespaces`).

Ray listens on the machine's own address, whatever it is told; in such a namespace there is none.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from shoestring.base.clock import SystemClock
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.ray_fleet import RayHost
from shoestring.fleet.supervisor import Interrupts, Supervisor
from tests.fleet.conformance import Transport, Watch, ignore


class RayTransport(Transport):
    host: RayHost

    def run(self, launch: Launch, watch: Watch = ignore, interrupts: Interrupts | None = None) -> Outcome:
        clock = SystemClock()
        self.host = RayHost(launch, clock)
        return Supervisor(launch.fleet.members, self.host, clock, watch, interrupts or Interrupts()).run()

    def kill_coordinator(self) -> None:
        self.host.kill_coordinator()


class OnRay:
    """What makes a suite run on Ray."""

    @pytest.fixture(scope="class")
    def cluster(self) -> Iterator[None]:
        """One cluster for all tests: starting one takes seconds."""
        ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()

    @pytest.fixture
    def transport(self, cluster: None) -> Transport:
        return RayTransport()
