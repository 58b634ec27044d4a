"""What a step costs under a strategy: bytes per rank, seconds, bytes on the wires (source: ours).

Predicts our own engine. A model is cut into units: the root (embedding, head, last norm) and equal layers.
Sharded parameters are gathered unit by unit in forward and again in backward, the root once a micro-step.
Gradients leave unit by unit as backward makes them. Once a step, gradients go to who holds the states, and
new parameters come back. The order of all that stands in `timeline`, the published formulas in `published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Strategy
from shoestring.cluster.timeline import OUTSTANDING, Move, UnitMoves, step_time_s
from shoestring.cluster.topology import Cluster, Device
from shoestring.cluster.wires import NOTHING, Kind, Method, Scope, Traffic, Wires

MASTER_BYTES = 4  # fp32
SCOPE_OF: Mapping[str, Scope] = MappingProxyType({"I": "group", "G": "world"})
NORM_BYTES = 64  # the smallest of messages: its latencies alone count
Chain = tuple[tuple[Scope, Traffic], ...]
# Gradients of one letter to the owners of states of another: the collectives in turn, and over what share of
# the gradients: 1 all, "I" this rank's shard inside the group.
SYNC_GRADIENTS: Mapping[str, tuple[tuple[Kind, Scope, str], ...]] = MappingProxyType(
    {
        "NN": (("all_reduce", "world", "N"),),
        "NI": (("reduce_scatter", "group", "N"), ("all_reduce", "peers", "I")),
        "NG": (("reduce_scatter", "world", "N"),),
        "II": (("all_reduce", "peers", "I"),),
        "IG": (("reduce_scatter", "peers", "I"),),
        "GG": (),
        # States coarser than gradients: never sensible, priced all the same.
        "IN": (("all_reduce", "peers", "I"), ("all_gather", "group", "N")),
        "GN": (("all_gather", "world", "N"),),
        "GI": (("all_gather", "peers", "I"),),
    }
)
# States of one letter to parameters of another; who holds enough already slices, which moves nothing.
SYNC_PARAMETERS: Mapping[str, tuple[tuple[Kind, Scope, str], ...]] = MappingProxyType(
    {
        "GN": (("all_gather", "world", "N"),),
        "GI": (("all_gather", "peers", "I"),),
        "IN": (("all_gather", "group", "N"),),
    }
)


class JobCost(Config):
    """What a step costs, whoever does it.

    Attributes:
        parameters: Psi, all parameters.
        flops_per_sample: forward and backward, 6 x active parameters x tokens for a language model.
        activation_bytes_per_sample: kept between forward and backward.
        micro_batch: samples in memory at once.
        batch: samples of a global step.
        gradient_bytes: bytes of one parameter's gradient on the wire.
        base_bytes: a worker process before it holds anything.
        trainable_parameters: Psi'; 0: all of them.
        layers: units beside the root; 0: the whole model is the root.
        root_parameters: of the root unit.
        accumulation: s, micro-steps of an optimizer step; 0: batch / (ranks x micro_batch), rounded up.
        compute_s: measured, of one micro-step without communication while all ranks compute; 0: flops / rate.
        compute_dtype: of parameters and matrix products: which rate of the devices counts.
        parameter_bytes: of one working parameter, in memory and on the wire.
        accumulated_bytes: of one accumulated gradient; 0: as on the wire.
        moment_bytes: optimizer states of one parameter beside the master: Adam 8, Muon or momentum 4, SGD 0;
            the mean over all parameters.
        update_bytes: of one parameter, the mean over all: what ranks that hold the whole states sum up to
            share the work of an update (Muon's matrices); nothing hides it.
        update_s: measured, of the optimizer's update of all trainable parameters by one rank; 0: a guess.
    """

    parameters: int
    flops_per_sample: float
    activation_bytes_per_sample: float
    micro_batch: int
    batch: int
    gradient_bytes: int = 4
    base_bytes: int = 400 * 2**20
    trainable_parameters: int = 0
    layers: int = 0
    root_parameters: int = 0
    accumulation: int = 0
    compute_s: float = 0.0
    compute_dtype: str = "fp32"
    parameter_bytes: int = 4
    accumulated_bytes: int = 0
    moment_bytes: float = 8.0
    update_bytes: float = 0.0
    update_s: float = 0.0

    @property
    def trainable(self) -> int:
        """Psi'."""
        return self.trainable_parameters or self.parameters

    @property
    def root(self) -> float:
        """Parameters of the root unit."""
        return self.root_parameters if self.layers else self.parameters

    @property
    def layer(self) -> float:
        """Parameters of one layer; 0 without layers."""
        return (self.parameters - self.root_parameters) / self.layers if self.layers else 0.0

    def micro_steps(self, ranks: int) -> int:
        """s."""
        return self.accumulation or max(1, -(-self.batch // (ranks * self.micro_batch)))


class OverlapModel(Config):
    """How communication and compute get along: the coefficients to calibrate, all in this one place.

    Attributes:
        start_s: of each collective, beside its bytes and latencies: threads, locks, Python.
        busy_s_per_byte: core time of a worker for each byte that it sends, with receiving and adding as many;
            where no core is spare, it lengthens the compute that it runs beside.
        prefetch: the next unit is gathered while this one computes; otherwise once it is needed.
        update_s_per_parameter: of the optimizer's update, norm and rounding included, by one rank.
        wire_share: what a ring makes of a link's measured rate.
    """

    start_s: float
    busy_s_per_byte: float
    update_s_per_parameter: float
    prefetch: bool = True
    wire_share: float = 1.0


# Assumptions until a run has calibrated them: sockets copy about 1 GB/s a core; a kernel's launch costs
# tens of us; Adam reads and writes about 30 bytes a parameter.
CPU_OVERLAP = OverlapModel(start_s=4e-4, busy_s_per_byte=8e-10, update_s_per_parameter=3e-9)
CUDA_OVERLAP = OverlapModel(start_s=3e-5, busy_s_per_byte=0.0, update_s_per_parameter=4e-11)


@dataclass(frozen=True)
class Held:
    """Bytes that one rank holds."""

    parameters_bytes: int
    gradients_bytes: int
    states_bytes: int
    working_bytes: int
    activations_bytes: int
    base_bytes: int

    @property
    def memory_bytes(self) -> int:
        """All together."""
        kept = self.parameters_bytes + self.gradients_bytes + self.states_bytes
        return kept + self.working_bytes + self.activations_bytes + self.base_bytes


def held(job: JobCost, strategy: Strategy, wires: Wires) -> Held:
    """Bytes per rank, with d in {1, m, n} for N, I, G.

    - parameters: w Psi/d_p; gradients: a Psi'/d_g; states: (4 + moments) Psi'/d_os, where an fp32 model
      (w = 4) needs no masters: they are a range of the parameters.
    - working: whole parameters of the root and two layers (this and the next), whole gradients of the root
      and three (this one and those under way), where sharded.
    Gradients of frozen parameters and their states do not exist.
    """
    parts = wires.layout.parts
    p, g, o = (parts(letter) for letter in strategy.name)
    masters = 1 / o - (1 / max(o, p) if job.parameter_bytes == MASTER_BYTES else 0.0)
    states = job.trainable * (MASTER_BYTES * masters + job.moment_bytes / o)
    accumulated_bytes = job.accumulated_bytes or job.gradient_bytes
    working = 0.0
    if p > 1:
        working += job.parameter_bytes * (job.root + min(2, job.layers) * job.layer)
    if g > 1:
        whole = job.root + min(OUTSTANDING + 1, job.layers) * job.layer
        working += accumulated_bytes * whole * job.trainable / job.parameters
    return Held(
        round(job.parameter_bytes * job.parameters / p),
        round(accumulated_bytes * job.trainable / g),
        round(states),
        round(working),
        round(job.micro_batch * job.activation_bytes_per_sample),
        job.base_bytes,
    )


@dataclass(frozen=True)
class StepCost:
    """One optimizer step.

    Attributes:
        compute_s: micro-steps and update, alone.
        communication_s: all collectives one after the other.
        exposed_s: what communication adds to compute.
        step_s: compute_s + exposed_s.
        worker_bytes: sent by each worker.
        card_bytes, local_bytes: sent through the busiest node's network card; between its own workers.
        rings: what for (`gather`, `scatter`, `sync_gradients`, `sync_parameters`) -> method, where bytes
            move.
    """

    compute_s: float
    communication_s: float
    exposed_s: float
    step_s: float
    worker_bytes: float
    card_bytes: float
    local_bytes: float
    rings: dict[str, Method]


@dataclass(frozen=True)
class _Unit:
    """Collectives of one unit, with their scopes; empty where nothing moves."""

    gather: Chain
    scatter: Chain
    sync_gradients: Chain
    sync_parameters: Chain


def step_cost(
    job: JobCost, strategy: Strategy, wires: Wires, cluster: Cluster, model: OverlapModel
) -> StepCost:
    """Predict one optimizer step.

    Micro-steps as `timeline` works them out from the times of their collectives, then the sum of norms over
    all ranks, then the update of this rank's shard of the states. In a micro-step the root is gathered once
    and each layer twice, but for the last layer, which backward begins with.

    Raises:
        ConfigError: the cluster names no rate for the job's dtype, and no compute time was measured.
    """
    s, layers = job.micro_steps(wires.layout.size), job.layers
    root, layer = (_unit(job, strategy, wires, size) for size in (job.root, job.layer))
    micro_compute_s = job.compute_s or compute_s(job, cluster)
    crowd = _crowding(cluster, wires.layout.size)
    root_s = micro_compute_s * job.root / job.parameters
    layer_s = (micro_compute_s - root_s) / max(1, layers)
    timed = [_timed(unit, own_s, model, crowd) for unit, own_s in ((root, root_s), (layer, layer_s))]
    network_s = step_time_s(timed[0], timed[1], layers, s, model.prefetch)
    whole_update_s = job.update_s or job.trainable * model.update_s_per_parameter
    update_s = whole_update_s / wires.layout.parts(strategy.states)
    norm = wires.collective("all_reduce", "world", NORM_BYTES)
    shared_bytes = job.trainable * job.update_bytes if strategy.states == "N" else 0.0
    shared = wires.collective("all_reduce", "world", shared_bytes)
    extra_s = sum(_seconds(move, model) for move in (norm, shared) if move is not NOTHING)
    wanted_s = s * micro_compute_s + update_s
    times = [(root.gather, s), (root.scatter, s), (root.sync_gradients, 1), (root.sync_parameters, 1)]
    times += [(layer.gather, s * max(0, 2 * layers - 1)), (layer.scatter, s * layers)]
    times += [(layer.sync_gradients, layers), (layer.sync_parameters, layers)]
    moved = [(move, count) for chain, count in times for _, move in chain]
    moved += [] if shared is NOTHING else [(shared, 1)]
    alone_s = 0.0 if norm is NOTHING else _seconds(norm, model)
    return StepCost(
        compute_s=wanted_s,
        communication_s=sum(_seconds(move, model) * count for move, count in moved) + alone_s,
        exposed_s=network_s + extra_s + update_s - wanted_s,
        step_s=network_s + extra_s + update_s,
        worker_bytes=sum(move.worker_bytes * count for move, count in moved),
        card_bytes=sum(move.card_bytes * count for move, count in moved),
        local_bytes=sum(move.local_bytes * count for move, count in moved),
        rings=_rings(layer if layers else root),
    )


def compute_s(job: JobCost, cluster: Cluster) -> float:
    """Seconds of a micro-step's compute on the slowest device, all its workers at work: flops / rate.

    Raises:
        ConfigError: a device has no rate for the job's dtype.
    """
    slowest = min(_rate(device, job.compute_dtype) for node in cluster.nodes for device in node.devices)
    return job.micro_batch * job.flops_per_sample / slowest


def _rate(device: Device, dtype: str) -> float:
    if dtype in device.rates:
        return device.rates[dtype]
    threads = str(max(1, device.cores // device.workers))
    if threads in device.flops_per_s:
        return device.flops_per_s[threads] * min(1.0, device.cores / device.workers)
    known = ", ".join([*device.rates, *(f"{count} threads" for count in device.flops_per_s)])
    raise ConfigError(
        f"the cluster has no rate of a {device.kind} device for {dtype} (known: {known or 'none'})",
        "run `shoestring probe` again, or write `rates` into the cluster file",
    )


def _crowding(cluster: Cluster, ranks: int) -> float:
    """How long a second of a worker's communication holds up its compute: 0 with a core to spare for each
    worker, 1 with one core each, more where workers outnumber cores."""
    devices = [device for node in cluster.nodes for device in node.devices]
    named = sum(device.workers for device in devices)
    worst = 0.0
    for device in devices:
        if device.kind == "cpu":
            load = device.workers * (ranks / named) / device.cores
            worst = max(worst, load if load >= 1 else max(0.0, 2 * load - 1))
    return worst


def _unit(job: JobCost, strategy: Strategy, wires: Wires, size: float) -> _Unit:
    trainable = size * job.trainable / job.parameters

    layout = wires.layout

    def channel(scope: Scope) -> Scope:
        # One group, or groups of one: the other level has all the wires.
        alone = layout.count == 1 if scope == "group" else layout.group_size == 1
        return "world" if alone else scope

    def chain(moves: Sequence[tuple[Kind, Scope, str]], size_bytes: float) -> Chain:
        made = [
            (channel(scope), wires.collective(kind, scope, size_bytes / layout.parts(letter)))
            for kind, scope, letter in moves
        ]
        return tuple((scope, move) for scope, move in made if move is not NOTHING)

    def whole(letter: str, kind: Kind) -> Sequence[tuple[Kind, Scope, str]]:
        return [(kind, SCOPE_OF[letter], "N")] if letter in SCOPE_OF else []

    back = strategy.states + strategy.parameters
    return _Unit(
        chain(whole(strategy.parameters, "all_gather"), size * job.parameter_bytes),
        chain(whole(strategy.gradients, "reduce_scatter"), trainable * job.gradient_bytes),
        chain(SYNC_GRADIENTS[strategy.gradients + strategy.states], trainable * job.gradient_bytes),
        chain(SYNC_PARAMETERS[back] if back in SYNC_PARAMETERS else (), trainable * job.parameter_bytes),
    )


def _timed(unit: _Unit, own_s: float, model: OverlapModel, crowd: float) -> UnitMoves:
    busy = model.busy_s_per_byte * crowd

    def moves(chain: Chain) -> tuple[Move, ...]:
        return tuple(Move(scope, _seconds(move, model), move.worker_bytes * busy) for scope, move in chain)

    return UnitMoves(
        own_s,
        moves(unit.gather),
        moves(unit.scatter),
        moves(unit.sync_gradients),
        moves(unit.sync_parameters),
    )


def _seconds(move: Traffic, model: OverlapModel) -> float:
    return move.time_s / model.wire_share + model.start_s


def _rings(unit: _Unit) -> dict[str, Method]:
    """Methods of the last collective of each chain; a chain has one over the world at the most."""
    chains = {
        "gather": unit.gather,
        "scatter": unit.scatter,
        "sync_gradients": unit.sync_gradients,
        "sync_parameters": unit.sync_parameters,
    }
    return {name: chain[-1][1].method for name, chain in chains.items() if chain}
