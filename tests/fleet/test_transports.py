"""The conformance suite on the transports of one machine."""

from __future__ import annotations

import pytest

from shoestring.base.clock import SystemClock
from shoestring.fleet.inprocess import run_inprocess
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.local import LocalHost
from shoestring.fleet.supervisor import Interrupts, Supervisor
from tests.fleet.conformance import Conformance, ProcessConformance, Transport, Watch, ignore


class InProcessTransport(Transport):
    workers = 1

    def run(self, launch: Launch, watch: Watch = ignore, interrupts: Interrupts | None = None) -> Outcome:
        return run_inprocess(launch, SystemClock(), watch, interrupts or Interrupts())


class LocalTransport(Transport):
    host: LocalHost

    def run(self, launch: Launch, watch: Watch = ignore, interrupts: Interrupts | None = None) -> Outcome:
        clock = SystemClock()
        self.host = LocalHost(launch, clock)
        return Supervisor(launch.fleet.members, self.host, clock, watch, interrupts or Interrupts()).run()

    def kill_coordinator(self) -> None:
        self.host.kill_coordinator()


class TestInProcess(Conformance):
    @pytest.fixture
    def transport(self) -> Transport:
        return InProcessTransport()


@pytest.mark.faults
class TestLocal(ProcessConformance):
    @pytest.fixture
    def transport(self) -> Transport:
        return LocalTransport()
