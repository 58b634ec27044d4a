"""Workers that come with a Ray cluster's capacity and leave before a host is drained.

In a network namespace that has nothing but `lo`, as in test_ray_fleet.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shoestring.base.clock import SystemClock
from shoestring.fleet import messages as m
from shoestring.fleet.launch import Outcome
from shoestring.fleet.supervisor import Interrupts, Supervisor
from tests.fleet.conformance import events, final_counts, launch
from tests.fleet.namespaces import INSIDE, run_inside
from tests.fleet.toys import Toy

HERE = Path(__file__)
SAMPLES = 6400
START_TIMEOUT_S = 6.0
FAR_MS = 600_000

if os.environ.get(INSIDE):
    import ray
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster

    from shoestring.fleet.ray_fleet import RayHost

    class Changing:
        """Watches a run: adds a host once two workers step, drains the first one's once three do."""

        def __init__(self, cluster: Any) -> None:
            self._cluster = cluster
            self.host: RayHost | None = None
            self.added = self.drained = ""

        def __call__(self, status: m.Status) -> None:
            active = [name for name, about in status.workers.items() if about["state"] == "active"]
            if not self.added and len(active) == 2 and status.elapsed_s > START_TIMEOUT_S + 1:
                self.added = self._cluster.add_node(num_cpus=1).node_id
            if self.added and not self.drained and len(active) == 3 and self.host is not None:
                self.drained = self.host.node_of("w0")
                told, why = GcsClient(address=self._cluster.address).drain_node(
                    self.drained, 2, "the host will be taken away", FAR_MS + int(SystemClock().wall() * 1000)
                )
                assert told, why

    def test_workers_come_with_capacity_and_leave_before_a_drain(tmp_path: Path) -> None:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            watch = Changing(cluster)
            # The third worker has no place at first, for longer than a start may take.
            members = {"cpus": 1.0, "start_timeout_s": START_TIMEOUT_S}
            fleet = launch(tmp_path, Toy(SAMPLES, step_s=0.02), 3, checkpoint_steps=50, **members)
            clock = SystemClock()
            watch.host = RayHost(fleet, clock)
            outcome = Supervisor(fleet.fleet.members, watch.host, clock, watch, Interrupts()).run()
        finally:
            ray.shutdown()
            cluster.shutdown()
        assert outcome == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        record = events(tmp_path)
        assert watch.added and watch.drained
        members = [event["members"] for event in record.of("round")]
        assert [len(names) for names in members[:3]] == [2, 3, 2]
        drained = [event for event in record.of("decision") if event["action"] == "drain"]
        assert [event["worker"] for event in drained] == ["w0"] and "drained" in drained[0]["reason"]
        assert not record.of("fault")

else:

    @pytest.mark.ray
    @pytest.mark.faults
    @pytest.mark.long
    @pytest.mark.timeout(200)
    def test_ray_workers_come_and_go_inside_a_namespace() -> None:
        assert " passed" in run_inside(HERE, 180.0)
