"""The entry point of a probing worker: one step, in which all ranks of the round survey (source: ours)."""

from __future__ import annotations

import os
import traceback

import msgspec
import torch

from shoestring.fleet import messages as m
from shoestring.fleet.channel import WorkerContext
from shoestring.fleet.seat import DismissedError, RoundOver, Seat
from shoestring.jobs.probe.findings import write_findings
from shoestring.jobs.probe.survey import facts_here, survey
from shoestring.jobs.probe.wire import Wire
from shoestring.parallel.group import PeerLostError, RendezvousStore

ENTRY = "shoestring.jobs.probe.worker:main"
TIMEOUT_S = 60.0


class ProbePayload(msgspec.Struct, frozen=True):
    """What a probing worker is told: how long it may take, and whether all workers are on this machine."""

    seconds: float
    loopback: bool

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)


def main(context: WorkerContext) -> None:
    """Survey with the others until it is done once.

    Raises:
        ShoestringError: whatever made this worker unable to go on; the coordinator was told.
    """
    payload = msgspec.json.decode(context.payload, type=ProbePayload)
    torch.set_num_threads(max(1, context.threads))
    with Seat(context.name, context.incarnation, context.open_channel, context.clock, context.config) as seat:
        try:
            _serve(seat, context, payload)
        except DismissedError:
            return
        except Exception:
            seat.crashed(traceback.format_exc())
            raise


def _serve(seat: Seat, context: WorkerContext, payload: ProbePayload) -> None:
    step, problem = -1, ""
    while True:
        round_ = seat.join(step, problem)
        if isinstance(round_, m.Stop):
            return
        try:
            step = _round(seat, context, payload, round_)
            return
        except (RoundOver, PeerLostError) as lost:
            problem = str(lost)


def _round(seat: Seat, context: WorkerContext, payload: ProbePayload, round_: m.Round) -> int:
    """Do what the coordinator orders, to the end of the run."""
    step, report = round_.step, None
    while True:
        order = seat.next(round_.round_id, step, report)
        if isinstance(order, m.Stop):
            return step
        if isinstance(order, m.Save):  # there is no state but the findings, which are written
            seat.saved(round_.round_id, order.step, {})
            continue
        began_s = context.clock.now()
        _survey(seat, context, payload, round_)
        samples = sum(end - start for start, end in order.ranges)
        step, report = order.step, m.StepReport(samples, context.clock.now() - began_s, 0.0)


def _survey(seat: Seat, context: WorkerContext, payload: ProbePayload, round_: m.Round) -> None:
    if payload.loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    address = "" if payload.loopback else context.host
    device = torch.device("cpu")
    if context.device == "cuda":
        torch.cuda.set_device(context.device_index)
        device = torch.device("cuda", context.device_index)
    store = RendezvousStore(seat.kv(round_.round_id), TIMEOUT_S)
    with seat.phase("connecting"):
        wire = Wire(store, round_.rank, len(round_.members), device, TIMEOUT_S, address)
    facts = facts_here(device, max(1, context.threads), address, address)
    found = survey(wire, facts, payload.seconds, context.clock, seat.phase)
    if round_.rank == 0:
        write_findings(found, context.run_dir)
    wire.close()
