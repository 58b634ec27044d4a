"""The engine of a worker: one thread, one loop; shards come in, files of output go out (source:
AntBatchInfer, data handler and scheduler; blame, regrouping and back-pressure are ours).

It moves orders and answers. What is decided is decided elsewhere: `blame`, `pressure`, `control.pools`,
`control.batching`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from shoestring.base.clock import Clock
from shoestring.base.errors import InferError
from shoestring.control.batching import BatchSize
from shoestring.data.output_state import Staged
from shoestring.fleet.shard_messages import PoolChange, Shard, ShardOrders
from shoestring.infer.blame import Failure
from shoestring.infer.config import ROWS, InferConfig
from shoestring.infer.crew import Came, Crew, Event, Gone, Hopeless, Member, Ready, failure_of
from shoestring.infer.desk import BrokenTold, News, Over, Settled, Speaker, State
from shoestring.infer.graph import Graph
from shoestring.infer.kids import Kids
from shoestring.infer.lanes import Bench, Broken, Lane
from shoestring.infer.layout import Setting, bounds_of, plans_of, shares_of
from shoestring.infer.load_lane import LoadLane
from shoestring.infer.pools import Decide, Now, PoolPlan, Pools
from shoestring.infer.pressure import Budget, process_bytes
from shoestring.infer.regroup import Queue
from shoestring.infer.shards import HeldSegments, Shards
from shoestring.infer.shared import NO_ROOM
from shoestring.infer.stage_lane import StageLane, StageRules
from shoestring.infer.wire import Orders, Raised, Replies
from shoestring.infer.write_lane import WriteLane

LONGEST_WAIT_S, ANSWER_WAIT_S, SHORTEST_WAIT_S = 0.1, 0.01, 0.001
WATCH_S = 1.0
LAST_WORDS_S = 5.0
"""What is staged when the time to leave is over may still be told for that long."""
FULL_PAUSE_S, FULL_S = 0.5, 30.0
"""Where shared memory is full: until the next try; until a shard alone that fills it ends the job."""
FIRST_BATCH = 32
MOST_ITEMS = 1 << 16
"""A batch never has more."""
PROVEN_TIMES = 16
"""A stage that has worked in the trial must fail with so many times `bug_rows` rows to be called buggy: a bad
file at the beginning is more likely then."""


@dataclass
class Tools:
    """What an engine works with.

    Attributes:
        kids: makes child processes.
        desk: speaks with the coordinator.
        remove: takes a segment off the machine, by name; one that is not there is fine.
        identity: position -> what a user knows the row by.
        budget: of shared memory; `look` brings it up to date.
        decide: how many processes each pool should have.
        saw: is told of each answer: the process, the order, the reply.
    """

    kids: Kids
    desk: Speaker
    clock: Clock
    remove: Callable[[str], None]
    identity: Callable[[int], str]
    budget: Budget
    look: Callable[[Budget], None]
    decide: Decide
    saw: Callable[[Member[object], Orders, Replies], None] = lambda member, order, reply: None


class Engine:
    """See the module.

    Args:
        config: the job.
        graph: its stages.
        setting, tools: see there.

    Attributes:
        notice: why this machine will be taken away soon; set by a signal's handler.
    """

    def __init__(self, config: InferConfig, graph: Graph, setting: Setting, tools: Tools) -> None:
        self.notice = ""
        self._config, self._graph, self._tools = config, graph, tools
        self._clock, self._desk = tools.clock, tools.desk
        self._setting = setting
        now = self._clock.now()
        segments = HeldSegments(tools.remove)
        after = {name: node.parent for name, node in graph.nodes.items()}
        plans = plans_of(config, graph, setting)
        self._crew: Crew[object] = Crew(
            tools.kids, self._clock, bounds_of(config, graph), shares_of(graph, setting), setting.devices
        )
        self._pools = Pools(plans, config.pools, setting.cores, tools.decide, now)
        # Without a trial, or in it, a writer has to see what types there are.
        kept = [name for name, node in graph.nodes.items() if node.keep or name not in setting.proven]
        self._bench = Bench(
            Shards(after, kept, segments), segments, self._crew, self._pools,
            {name: Queue() for name in graph.nodes}, tools.remove, self._desk.fault, tools.identity,
        )  # fmt: skip
        self._stages = {name: self._stage_lane(name) for name in graph.nodes}
        for name, node in graph.nodes.items():
            self._stages[name].children = [self._stages[child] for child in node.children]
        roots = tuple(self._stages[name] for name in graph.roots)
        self._load = LoadLane(self._bench, setting.chunk_rows, config.limits.hang_s, tools.budget, roots)
        self._write = WriteLane(self._bench, setting.who, config.limits.hang_s, self._staged)
        # Downstream first: what is nearest to the end frees the most.
        self._lanes: dict[str, Lane] = {
            "write": self._write, **dict(reversed(self._stages.items())), "load": self._load
        }  # fmt: skip
        for plan in plans:
            self._crew.resize(plan.name, plan.processes)
        self._told_rows: dict[int, int] = {}
        self._told_sizes = {name: lane.sizes.size for name, lane in self._stages.items()}
        self._watched_s = now
        self._until_s = math.inf
        self._reason = ""
        self._over = False
        self._broken: Broken | None = None
        self._rest_s: dict[str, float] = {}
        self._full_s = math.inf
        self._alone_until_s = 0.0
        self._bound_batches()

    # --- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until there is nothing more for this worker; all its processes have ended when this returns.

        Raises:
            InferError: the job is broken, and the coordinator knows.
            DismissedError, FleetError: as the seat says.
        """
        try:
            self.work()
        finally:
            self.close()

    def work(self) -> None:
        """As `run`; the processes stay, with nothing to do."""
        while not self.step():
            pass
        self.check()

    def check(self) -> None:
        """Whether it ended well.

        Raises:
            InferError: the job is broken, and the coordinator knows.
        """
        if self._broken is not None:
            raise InferError(self._broken.what, self._broken.todo)

    def begin_with(self, batches: Mapping[str, int]) -> None:
        """Batches of so many items from now on, where the user has not said how many."""
        for name, items in batches.items():
            self._stages[name].begin_with(self._sizes(name, items))
            self._told_sizes[name] = self._stages[name].sizes.size
        self._bound_batches()

    def close(self) -> None:
        """End all processes, remove all segments."""
        self._crew.close()
        self._bench.segments.clear()
        self._desk.close()

    def step(self) -> bool:
        """One turn of the loop; whether it was the last."""
        now = self._clock.now()
        if self.notice and not self._reason:
            self._leave(now, self._config.limits.drain_s, self.notice)
            self._desk.hurry()
        for piece in self._desk.turn(self._wanted(), self._state()):
            self._heed(piece, self._clock.now())
        now = self._clock.now()
        if now >= self._until_s:
            self._give_back(lambda _: True, self._reason)
        if self._finished(now):
            return True
        try:
            for event in self._crew.keep(now):
                self._happened(event, now)
            self._dispatch(now)
            events = self._crew.wait(self._wait_s(now))
            now = self._clock.now()
            for event in events:
                self._happened(event, now)
            self._write.collect()
            self._dispatch(now)
            self._crew.watch_time(now)
            self._look(now)
        except Broken as broken:
            self._break(broken)
        return False

    def _dispatch(self, now: float) -> None:
        if self._broken is not None:
            return
        for name, lane in self._lanes.items():
            offered = name not in self._rest_s or now >= self._rest_s[name]
            while offered:  # once round all processes at a time, so that none gets two while another has none
                offered = False
                for member in self._crew.free(name, lane.depth):
                    if self._setting.one_by_one and self._others_work(name):
                        break
                    task = lane.offer(member, now)
                    if task is None:
                        break
                    self._crew.send(member, task, now)
                    offered = True

    def _others_work(self, pool: str) -> bool:
        """Whether a pool has to wait for its turn; what takes many batches at a time gets them all."""
        streams = pool in self._stages and self._stages[pool].streams
        return any(self._crew.working(other) for other in self._lanes if other != pool or not streams)

    def _wait_s(self, now: float) -> float:
        ripe = min((at for lane in self._stages.values() if (at := lane.ripe_at()) > now), default=math.inf)
        longest_s = ANSWER_WAIT_S if self._desk.busy else LONGEST_WAIT_S
        return max(SHORTEST_WAIT_S, min(longest_s, ripe - now))

    # --- what happens ------------------------------------------------------------------------------

    def _happened(self, event: Event[object], now: float) -> None:
        if isinstance(event, Came):
            self._tools.saw(event.member, event.task.order, event.reply)
            if event.swollen and event.member.pool in self._stages and event.task.items > 1:
                self._stages[event.member.pool].sizes.too_large(event.task.items)
            lane = self._lanes[event.member.pool]
            if isinstance(event.reply, Raised) and NO_ROOM in event.reply.text and self._is_full(now):
                lane.spared(event.task)
                self._rest_s[event.member.pool] = now + FULL_PAUSE_S
            elif isinstance(event.reply, Raised):
                # What works on many batches at a time tells all of them that one has failed.
                sure = not event.member.streams or event.task.alone
                lane.failed(event.task, replace(failure_of(event.reply), sure=sure), now)
            else:
                lane.came(event.task, event.reply, now)
        elif isinstance(event, Gone):
            lane = self._lanes[event.member.pool]
            self._desk.fault(event.reason)
            # Those that only waited go back first, and so behind what is tried again.
            for task in reversed(event.spared):
                lane.spared(task)
            for task in event.blamed:
                lane.failed(task, event.failure, now)
        elif isinstance(event, Hopeless):
            raise Broken(*self._hopeless(event.pool, event.failure))
        elif isinstance(event, Ready) and event.member.pool in self._stages:
            self._stages[event.member.pool].streams = event.member.streams

    def _is_full(self, now: float) -> bool:
        """Whether shared memory is full of other rows, so that no item is to blame; then some of them go.

        Raises:
            Broken: these are of one shard alone, and that has not changed for long.
        """
        budget, shards = self._tools.budget, self._bench.shards
        budget.held_bytes = self._bench.segments.held_bytes
        self._tools.look(budget)
        if not budget.crowded:
            self._full_s = math.inf
            return False
        self._full_s = min(self._full_s, now)
        # Else others fill the room again before who needs it has come round.
        self._rest_s["load"] = now + 2 * FULL_PAUSE_S
        self._alone_until_s = now + FULL_S
        if len(shards) > 1:
            newest = list(shards)[-1]
            self._drop(newest.lease_id, "shared memory is full")
        elif now - self._full_s > FULL_S:
            rows, held, free = shards.rows, budget.held_bytes / 1e6, budget.free_bytes / 1e6
            raise Broken(
                f"a shard of {rows} rows needs more shared memory than there is: {held:.0f} MB are held, "
                f"{free:.0f} MB are free",
                f"set shards.rows to {max(1, rows // 4)}, or make room in /dev/shm",
            )
        return True

    def _hopeless(self, pool: str, failure: Failure) -> tuple[str, str]:
        what = (
            f"stage {pool} cannot be set up" if pool in self._stages else f"no {pool} process can be set up"
        )
        detail = f"\n{failure.detail.rstrip()}" if failure.detail else ""
        todo = failure.todo or "mend what the traceback shows, then run the same command again"
        return f"{what}: {failure.text}{detail}", todo

    def _heed(self, news: News, now: float) -> None:
        if isinstance(news, Shard) and (self._until_s < math.inf or self._broken is not None):
            self._desk.give_back(news.lease_id, self._reason or "the job is broken")
        elif isinstance(news, Shard):
            self._bench.shards.add(news.lease_id, news.ranges, news.verdicts)
            self._write.collect()  # one of verdicts alone is complete
        elif isinstance(news, Settled):
            self._told_rows.pop(news.lease_id, None)
            if news.outcome == "late":
                self._write.discard(news.staged)
        elif isinstance(news, Over):
            self._over = True
            self._reason = self._reason or news.reason
        elif isinstance(news, ShardOrders):
            if news.leave_s >= 0:
                self._leave(now, news.leave_s, news.reason)
            if news.give_back:
                self._give_back_some(news.give_back, news.reason)
        elif isinstance(news, BrokenTold):
            self._until_s = min(self._until_s, now)
            self._over = True

    def _staged(self, lease_id: int, staged: Staged) -> None:
        self._told_rows[lease_id] = staged.rows
        self._desk.done(lease_id, staged)

    def _break(self, broken: Broken) -> None:
        if self._broken is None:
            self._broken = broken
            self._desk.broken(broken.what, broken.todo)

    # --- coming and going ----------------------------------------------------------------------------

    def _wanted(self) -> int:
        """Shards to ask for."""
        hand = len(self._bench.shards)
        full = hand > 0 and self._bench.segments.held_bytes > self._tools.budget.now_bytes
        full = full or (hand > 0 and self._clock.now() < self._alone_until_s)
        if self._over or self._broken or self._until_s < math.inf or full:
            return 0
        return max(0, self._config.shards.ahead - hand - self._desk.staged)

    def _leave(self, now: float, leave_s: float, reason: str) -> None:
        """Take no more; what is not begun goes back now, what is not done in time then."""
        self._until_s = min(self._until_s, now + leave_s)
        self._reason = self._reason or reason or "told to leave"
        self._give_back(lambda begun: not begun, self._reason)

    def _give_back(self, wanted: Callable[[bool], bool], reason: str) -> None:
        for shard in list(self._bench.shards):
            if wanted(shard.begun):
                self._drop(shard.lease_id, reason)

    def _give_back_some(self, count: int, reason: str) -> None:
        """The newest of those that are not begun."""
        spare = [shard.lease_id for shard in self._bench.shards if not shard.begun]
        for lease_id in spare[max(0, len(spare) - count) :]:
            self._drop(lease_id, reason)

    def _drop(self, lease_id: int, reason: str) -> None:
        self._bench.shards.drop(lease_id)
        for lane in self._lanes.values():
            lane.drop(lease_id)
        self._desk.give_back(lease_id, reason)

    def _finished(self, now: float) -> bool:
        if len(self._bench.shards):
            return False
        left = now >= self._until_s
        if left and now >= self._until_s + LAST_WORDS_S:
            return True
        # What was staged in vain is removed before we go; the next recovery would do it, too.
        leaving = self._over or self._until_s < math.inf
        if not leaving or self._desk.waiting or self._desk.busy or self._write.busy:
            return False
        if self._desk.untold:
            self._desk.hurry()
            return False
        return True

    # --- looking ---------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        if now - self._watched_s >= WATCH_S:
            self._watched_s = now
            for text in self._crew.watch_memory():
                self._desk.fault(text)
            self._tools.budget.held_bytes = self._bench.segments.held_bytes
            self._tools.look(self._tools.budget)
            self._bound_batches()
        for name, lane in self._stages.items():
            if lane.sizes.size != self._told_sizes[name]:
                sizes = {"from": float(self._told_sizes[name]), "to": float(lane.sizes.size)}
                self._desk.changed(PoolChange("batch", name, lane.sizes.reason, dict(sizes)))
                self._told_sizes[name] = lane.sizes.size
        if not self._pools.due(now):
            return
        resizes, reason = self._pools.look(
            now, {plan.name: self._seen(plan, now) for plan in self._pools.plans}
        )
        for one in resizes:
            before, most = self._crew.target(one.pool), self._crew.most(one.pool)
            # Two that grow at a time may have counted on the same room of a GPU.
            after = min(one.processes, max(before, most)) if most else one.processes
            if after == before:
                continue
            self._crew.resize(one.pool, after)
            change = {"from": float(before), "to": float(after)}
            self._desk.changed(PoolChange("resize", one.pool, reason, dict(change)))

    def _bound_batches(self) -> None:
        """Batches grow while a process holds no more than the other pools leave it, unless the user has set a
        bound: else they would until the kernel kills somebody."""
        held = {pool: sum(one.memory_bytes for one in self._crew.members(pool)) for pool in self._lanes}
        for name, lane in self._stages.items():
            if not self._graph.nodes[name].config.memory_bytes:
                others_bytes, wanted = sum(held.values()) - held[name], self._crew.target(name)
                lane.sizes.bound(process_bytes(self._tools.budget.processes_bytes, others_bytes, wanted))

    def _seen(self, plan: PoolPlan, now: float) -> Now:
        members = self._crew.members(plan.name)
        return Now(
            processes=self._crew.target(plan.name),
            ready=sum(one.state in ("ready", "leaving") for one in members),
            occupied_s=self._crew.take_occupied_s(plan.name, now),
            waiting=self._lanes[plan.name].waiting,
            batch=self._stages[plan.name].sizes.size if plan.name in self._stages else 0,
            restarts=self._crew.restarts(plan.name),
            memory_bytes=max((one.memory_bytes for one in members), default=0),
            most=self._crew.most(plan.name),
        )

    def _state(self) -> State:
        begun = sum(shard.rows for shard in self._bench.shards if shard.begun)
        return State(self._pools.shown, begun + sum(self._told_rows.values()), self.notice)

    # --- making ------------------------------------------------------------------------------------------

    def _stage_lane(self, name: str) -> StageLane:
        node, setting, limits = self._graph.nodes[name], self._setting, self._config.limits
        own = node.config
        sizes = self._sizes(name, setting.batches[name] if name in setting.batches else FIRST_BATCH)
        bug_rows = limits.bug_rows * (PROVEN_TIMES if name in setting.proven else 1)
        if setting.rows:
            bug_rows = min(bug_rows, setting.rows)
        rules = StageRules(own.max_wait_s, own.hang_s or limits.hang_s, bug_rows)
        return StageLane(name, self._bench, sizes, rules, lambda: self._dry(name))

    def _sizes(self, name: str, first: int) -> BatchSize:
        own = self._graph.nodes[name].config
        most = max(MOST_ITEMS, own.batch)
        return BatchSize(own.batch or first, most, own.memory_bytes, fixed=own.batch > 0)

    def _dry(self, stage: str) -> bool:
        """Whether nothing upstream can add to a stage's queue, as far as is known now."""
        parent = self._graph.nodes[stage].parent
        if parent == ROWS:
            return not self._load.busy and not self._bench.shards.unread
        return not self._stages[parent].busy and self._dry(parent)
