"""Processes of pools: started, watched, replaced and let go."""

from __future__ import annotations

import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import FleetError
from shoestring.infer.crew import (
    Bounds,
    Came,
    Crew,
    Event,
    Gone,
    Hopeless,
    Ready,
    Task,
    failure_of,
    failure_of_end,
    over,
    place,
)
from shoestring.infer.kids import KidEnd
from shoestring.infer.wire import Cost, Loaded, Orders, Predict, Predicted, Raised, Replies, Up

MB = 1 << 20


class Puppet:
    """A child that says what the test wants."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.orders: list[Orders] = []
        self.says: list[Replies] = []
        self.end: KidEnd | None = None
        self.stopped = False

    def send(self, order: Orders) -> None:
        self.orders.append(order)

    def receive(self) -> tuple[list[Replies], KidEnd | None]:
        says, self.says = self.says, []
        return says, self.end

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.end = KidEnd(-9, "")


class Puppets:
    """Makes them."""

    def __init__(self) -> None:
        self.made: list[Puppet] = []
        self.devices: list[str] = []
        self.memory: dict[int, int] = {}
        self.refuse = False

    def start(self, pool: str, device: str) -> Puppet:
        if self.refuse:
            raise FleetError("no process", "free memory")
        self.made.append(Puppet(len(self.made)))
        self.devices.append(device)
        return self.made[-1]

    def wait(self, kids: list[Puppet], timeout_s: float) -> list[Puppet]:
        return [kid for kid in kids if kid.says or kid.end is not None]

    def memory_bytes(self, pid: int) -> int:
        return self.memory.get(pid, MB)

    def close(self) -> None:
        for kid in self.made:
            kid.kill()


class Stage:
    """A crew of one pool."""

    def __init__(self, share: float = 0.0, devices: tuple[str, ...] = ()) -> None:
        self.clock, self.kids = FakeClock(100.0), Puppets()
        shares = {"a": share} if share else {}
        self.crew: Crew[str] = Crew(self.kids, self.clock, {"a": Bounds(60.0, 100 * MB)}, shares, devices)

    def keep(self, count: int) -> list[Event[str]]:
        self.crew.resize("a", count)
        return self.crew.keep(self.clock.now())

    def up(self, count: int = 1, streams: bool = False, room: int = -1) -> None:
        assert not self.keep(count)
        for kid in self.kids.made:
            if kid.end is None and not kid.orders:
                kid.says.append(Up(-1, 0.5, streams, room))
        assert all(isinstance(event, Ready) for event in self.crew.wait(0.0))

    def give(self, number: int, items: int = 1, alone: bool = False) -> bool:
        able = self.crew.free("a", 2)
        if able:
            task = Task(Predict(number, (), f"a{number}"), f"work {number}", items, (), 30.0, alone)
            self.crew.send(able[0], task, self.clock.now())
        return bool(able)


def done(number: int, room: int = -1, memory_bytes: int = MB) -> Predicted:
    return Predicted(number, 1, 1, b"", {}, Cost(1.0, 0.5, memory_bytes), room)


def test_it_starts_stops_and_gives_tasks_to_who_has_least() -> None:
    stage = Stage()
    stage.up(2)
    assert [stage.give(number) for number in range(5)] == [True, True, True, True, False]
    assert [[order.task for order in kid.orders] for kid in stage.kids.made] == [[0, 2], [1, 3]]
    stage.keep(1)
    leaving = next(one for one in stage.crew.members("a") if one.state == "leaving")
    kid = leaving.kid
    assert isinstance(kid, Puppet) and not kid.stopped, "it has tasks"
    kid.says += [done(order.task) for order in kid.orders]
    assert [event.task.work for event in stage.crew.wait(0.0) if isinstance(event, Came)] == [
        "work 0",
        "work 2",
    ]
    stage.crew.keep(stage.clock.now())
    assert kid.stopped
    kid.end = KidEnd(0, "")
    assert stage.crew.wait(0.0) == [] and len(stage.crew.members("a")) == 1 and stage.crew.restarts("a") == 0


def test_one_that_does_not_stop_is_killed() -> None:
    stage = Stage()
    stage.up()
    stage.keep(0)
    stage.clock.advance(11.0)
    stage.keep(0)
    assert stage.kids.made[0].end == KidEnd(-9, "") and stage.crew.wait(0.0) == []


def test_who_dies_is_replaced_and_only_the_task_in_work_is_blamed() -> None:
    stage = Stage()
    stage.up()
    stage.give(1)
    stage.give(2)
    stage.kids.made[0].end = KidEnd(-11, "a fault")
    (gone,) = stage.crew.wait(0.0)
    assert isinstance(gone, Gone)
    assert [task.work for task in gone.blamed] == ["work 1"] and [task.work for task in gone.spared] == [
        "work 2"
    ]
    assert gone.failure.kind == "died" and gone.failure.text == "killed its process (SIGSEGV)"
    stage.keep(1)
    assert len(stage.kids.made) == 2 and stage.crew.restarts("a") == 1


def test_what_works_on_many_at_a_time_is_blamed_for_all_of_them() -> None:
    stage = Stage()
    stage.up(streams=True, room=3)
    assert [stage.give(number) for number in range(4)] == [True, True, True, False]
    stage.kids.made[0].says.append(done(1, room=3))  # it did not know of the others yet
    stage.crew.wait(0.0)
    assert stage.give(5) and not stage.give(6)
    stage.kids.made[0].end = KidEnd(-9, "")
    (gone,) = stage.crew.wait(0.0)
    assert isinstance(gone, Gone) and [task.work for task in gone.blamed] == ["work 0", "work 2", "work 5"]
    assert gone.failure.kind == "killed"


def test_a_suspect_has_its_process_for_itself() -> None:
    stage = Stage()
    stage.up()
    assert stage.give(1, alone=True) and not stage.give(2)


def test_who_takes_too_long_is_killed() -> None:
    stage = Stage()
    stage.up()
    stage.give(1)
    stage.clock.advance(30.5)
    stage.crew.watch_time(stage.clock.now())
    (gone,) = stage.crew.wait(0.0)
    assert (
        isinstance(gone, Gone)
        and gone.failure.kind == "hung"
        and gone.failure.text == "took longer than 30 s"
    )


def test_time_waiting_in_a_process_does_not_count() -> None:
    stage = Stage()
    stage.up()
    stage.give(1)
    stage.give(2)
    stage.clock.advance(29.0)
    stage.kids.made[0].says.append(done(1))
    stage.crew.wait(0.0)
    stage.clock.advance(29.0)
    stage.crew.watch_time(stage.clock.now())
    assert stage.kids.made[0].end is None
    assert stage.crew.take_occupied_s("a", stage.clock.now()) == pytest.approx(58.0)
    assert stage.crew.take_occupied_s("a", stage.clock.now()) == 0.0


def test_three_deaths_in_setup_are_hopeless_and_one_that_comes_up_forgets_them() -> None:
    stage = Stage()
    for number in range(2):
        assert not stage.keep(1)
        stage.kids.made[number].end = KidEnd(-11, "a fault")
        assert [type(event) for event in stage.crew.wait(0.0)] == [Gone]
        stage.clock.advance(10.0)
    stage.up()
    for number in range(2, 6):
        stage.keep(1)
        stage.kids.made[number].end = KidEnd(-11, "a fault")
        events = stage.crew.wait(0.0)
        stage.clock.advance(10.0)
    assert isinstance(events[-1], Hopeless) and "SIGSEGV" in events[-1].failure.text


def test_a_setup_that_raises_is_hopeless_at_once_but_not_once_it_has_worked() -> None:
    said = Raised(-1, "stage", "KeyError at m.py:3", "KeyError: 'x'", "Traceback ...")
    stage = Stage()
    stage.keep(1)
    stage.kids.made[0].says, stage.kids.made[0].end = [said], KidEnd(0, "")
    assert isinstance(stage.crew.wait(0.0)[-1], Hopeless)
    stage = Stage()
    stage.up()
    stage.keep(2)
    stage.kids.made[1].says, stage.kids.made[1].end = [said], KidEnd(0, "")
    assert [type(event) for event in stage.crew.wait(0.0)] == [Gone]


def test_a_machine_without_room_for_a_process_is_asked_again_and_then_given_up() -> None:
    stage = Stage()
    stage.kids.refuse = True
    assert stage.keep(1) == [] and stage.keep(1) == []
    stage.clock.advance(10.0)
    assert stage.keep(1) == []
    stage.clock.advance(10.0)
    (hopeless,) = stage.keep(1)
    assert isinstance(hopeless, Hopeless) and hopeless.failure.text == "no process"


def test_memory_is_the_batch_or_a_leak() -> None:
    assert over(90 * MB, 0, 100 * MB) == "" and over(900 * MB, 0, 0) == ""
    assert over(101 * MB, 95 * MB, 100 * MB) == "leak" and over(130 * MB, 110 * MB, 100 * MB) == "leak"
    assert over(101 * MB, 70 * MB, 100 * MB) == "batch"


def test_a_batch_that_is_too_large_is_killed() -> None:
    stage = Stage()
    stage.up()
    stage.give(1)
    stage.kids.memory[0] = 200 * MB
    assert stage.crew.watch_memory() == []
    (gone,) = stage.crew.wait(0.0)
    assert isinstance(gone, Gone) and gone.failure.kind == "memory"


@pytest.mark.parametrize(("before", "after", "swollen"), [(99, 101, False), (20, 120, True)])
def test_what_has_grown_too_large_is_replaced_after_its_task(before: int, after: int, swollen: bool) -> None:
    stage = Stage()
    stage.up()
    stage.give(1)
    stage.kids.made[0].says.append(done(1, memory_bytes=before * MB))
    stage.crew.wait(0.0)
    stage.give(2)
    stage.kids.made[0].says.append(done(2, memory_bytes=after * MB))
    (came,) = stage.crew.wait(0.0)
    assert isinstance(came, Came) and came.swollen == swollen
    (told,) = stage.crew.watch_memory()
    assert "replaced" in told and stage.crew.watch_memory() == []
    stage.keep(1)
    assert stage.kids.made[0].stopped and len(stage.kids.made) == 2 and not stage.give(3)


def test_processes_share_devices_evenly() -> None:
    stage = Stage(share=0.5, devices=("cuda:0", "cuda:1"))
    stage.keep(4)
    assert stage.kids.devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert stage.crew.most("a") == 4
    assert place(("cuda:0", "cuda:1"), [("cuda:0", 0.5)]) == "cuda:1"


def test_pools_leave_each_other_room_on_the_devices() -> None:
    bounds = dict.fromkeys(("a", "b", "load"), Bounds(60.0))
    crew: Crew[str] = Crew(Puppets(), FakeClock(0.0), bounds, {"a": 0.5, "b": 0.25}, ("cuda:0",))
    crew.resize("a", 1)
    crew.resize("b", 1)
    assert (crew.most("a"), crew.most("b"), crew.most("load")) == (1, 2, 0)
    crew.resize("b", 4)
    assert (crew.most("a"), crew.most("b")) == (1, 2)
    crew.resize("b", 0)
    assert crew.most("a") == 2


def test_what_went_wrong_in_words() -> None:
    killed = failure_of_end(KidEnd(-9, "x"))
    assert killed.kind == "killed" and "SIGKILL" in killed.text and "memory_bytes" in killed.text
    assert failure_of_end(KidEnd(3, "x")).text == "ended its process (exit code 3)"
    memory = failure_of(Raised(1, "memory", "s", "MemoryError", "t"))
    assert (memory.kind, memory.text) == ("memory", "does not fit into memory")
    assert failure_of(Raised(1, "stage", "s", "KeyError: 1", "t", "mend")).todo == "mend"


def test_a_late_answer_of_nothing_is_passed_over() -> None:
    stage = Stage()
    stage.up()
    stage.kids.made[0].says.append(Loaded(77, 1, 1, {}, Cost(0.0, 0.0, 0)))
    assert stage.crew.wait(0.0) == []
