"""The durable ledger: deltas of the pure state machine, written in one transaction (source: ours).

Operations change memory at once and gather what they touched; `commit` makes all of it durable
together. Whoever answers clients answers after `commit`, so one transaction serves many of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from shoestring.base.errors import LedgerError
from shoestring.data.databases import START_OVER
from shoestring.data.ledger import Ledger
from shoestring.data.ledger_state import Head, Lease, LedgerSpec, Letter, Snapshot, decode_snapshot
from shoestring.data.output_state import Output
from shoestring.data.ranges import Range
from shoestring.data.stores import OWNER, Changes, Claim, Row, Rows, SqlStore, Store

SPEC, HEAD = "spec", "head"
RESERVED = frozenset({SPEC, HEAD, OWNER})


class DurableLedger(Ledger):
    """A Ledger whose state survives the process.

    Made by `open`. One process at a time writes: the newest to open the store owns it, and an
    older owner's next commit is refused.

    Once a commit has failed, memory is ahead of the store: every operation is refused, until the
    ledger is opened anew.
    """

    def __init__(self, spec: LedgerSpec, store: Store) -> None:
        self._broken, self._todo = "", "open it again"
        super().__init__(spec)
        self._store = store
        self._meta: dict[str, bytes] = {}
        self._dirty_meta: set[str] = set()
        self._outputs: dict[int, Output] = {}
        self._new_outputs: set[int] = set()
        self._stored: dict[str, set[int]] = {}
        self._written = b""
        self._all_dirty = False
        self._load(store.claim())

    # --- opening and closing -------------------------------------------------------------------

    @classmethod
    def open(cls, where: str | Store, spec: LedgerSpec, job: str = "") -> DurableLedger:
        """The ledger at a database URL or in a store, as it was last committed; else a new one.

        Args:
            job: whose ledger it is, where several jobs share a database; see SqlStore.

        Raises:
            LedgerError: the store cannot be opened, is damaged, or is about other data.
        """
        store = SqlStore(where, job) if isinstance(where, str) else where
        try:
            return cls(spec, store)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Let go of the store; what was not committed is gone."""
        self._broken = "it is closed"
        self._store.close()

    def __enter__(self) -> DurableLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- beside the samples ----------------------------------------------------------------------

    def put_meta(self, key: str, value: bytes) -> None:
        """Keep a value, durable with the next commit.

        Raises:
            LedgerError: the ledger keeps something of its own under that key.
        """
        self._ready()
        if key in RESERVED:
            raise LedgerError(f"the ledger itself keeps `{key}`", "choose another key")
        self._meta[key] = value
        self._dirty_meta.add(key)

    def get_meta(self, key: str) -> bytes | None:
        """A kept value."""
        return self._meta[key] if key in self._meta else None

    def add_output(self, output: Output) -> None:
        """Keep what was made of a lease's positions, durable with the next commit, together with their
        `done`. The same lease's again takes the place of the earlier one."""
        self._ready()
        self._outputs[output.lease_id] = output
        self._new_outputs.add(output.lease_id)

    def outputs(self) -> list[Output]:
        """What was kept, by lease."""
        return [output for _, output in sorted(self._outputs.items())]

    # --- going back --------------------------------------------------------------------------------

    def replace(self, snapshot: bytes | Snapshot) -> None:
        """Go to the state of a snapshot (roll back to a checkpoint), durable with the next commit.

        No lease survives it: whoever holds one worked for a past that is left, and reports late.

        Raises:
            LedgerError: the snapshot is damaged or about other data, or there are outputs; nothing has
                changed then.
        """
        self._ready()
        self._refuse_outputs()
        decoded = snapshot if isinstance(snapshot, Snapshot) else decode_snapshot(snapshot)
        self._become(Ledger.restore(self.spec, decoded).snapshot(in_flight="todo"))

    def reset(self) -> None:
        """Go back to the beginning, durable with the next commit.

        Raises:
            LedgerError: there are outputs.
        """
        self._ready()
        self._refuse_outputs()
        self._become(Ledger(self.spec).snapshot(in_flight="todo"))

    def _refuse_outputs(self) -> None:
        if self._outputs:
            raise LedgerError(
                "a ledger with committed outputs cannot go back: their files are published",
                "start the job again, with another folder for its output",
            )

    def _become(self, snapshot: Snapshot) -> None:
        # Numbers of the past that is left are never given again: a late report must not meet a new lease.
        next_id = max(self._next_id, snapshot.head.next_id)
        head = msgspec.structs.replace(snapshot.head, next_id=next_id, horizon=next_id)
        stored = self._stored
        self._adopt(msgspec.structs.replace(snapshot, head=head))
        self._stored = stored
        self._all_dirty = True

    # --- commit --------------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Make all operations since the last commit durable, in one transaction.

        Returns:
            Whether there was anything to write.

        Raises:
            LedgerError: the store cannot be written (full disk) or has another owner.
        """
        self._ready()
        changes = self._changes()
        if not (changes.meta or any(changes.gone.values()) or any(changes.rows.values())):
            return False
        try:
            self._store.write(self._owner, changes)
        except BaseException as error:
            self._broken, self._todo = repr(error), "resume the run"
            if isinstance(error, LedgerError):
                self._broken, self._todo = error.what, error.todo
            raise
        for name, keys in changes.gone.items():
            self._stored[name].difference_update(keys)
            self._stored[name].update(row[0] for row in changes.rows[name])
        self._written = changes.meta[HEAD] if HEAD in changes.meta else self._written
        self._dirty_meta.clear()
        self._track()
        return True

    def _ready(self) -> None:
        if self._broken:
            raise LedgerError(
                f"the ledger refuses, as its store has failed: {self._broken}",
                self._todo,
            )

    # --- rows ----------------------------------------------------------------------------------------

    def _load(self, claim: Claim) -> None:
        self._owner = claim.owner
        self._meta = {key: value for key, value in claim.meta.items() if key not in RESERVED}
        self._stored = {name: {row[0] for row in rows} for name, rows in claim.rows.items()}
        if HEAD in claim.meta:
            self._adopt(_snapshot_of(claim))
            self._written = claim.meta[HEAD]
        try:
            kept = [msgspec.msgpack.decode(bytes(data), type=Output) for _, data in claim.rows["outputs"]]
        except msgspec.DecodeError as error:
            raise _damaged(error) from error
        self._outputs = {output.lease_id: output for output in kept}
        self._track()

    def _track(self) -> None:
        """From now on, note what changes."""
        self._all_dirty = False
        self.touched_leases = set()
        self._new_outputs = set()
        self._returned.touched, self._lost.touched = set(), set()
        self._blame.touched, self._blame.suspects.touched = set(), set()

    def _changes(self) -> Changes:
        meta = {key: self._meta[key] for key in sorted(self._dirty_meta)}
        head = msgspec.msgpack.encode(Head(self._frontier, self._next_id, self._horizon, self._skipped))
        if head != self._written:
            meta |= {HEAD: head, SPEC: msgspec.msgpack.encode(self.spec)}
        touched = self._touched()
        gone = {name: sorted(touched[name] & stored) for name, stored in self._stored.items()}
        return Changes(meta, gone, {name: self._rows(name, sorted(touched[name])) for name in self._stored})

    def _touched(self) -> dict[str, set[int]]:
        if not self._all_dirty:
            return {
                "leases": self.touched_leases or set(), "returned": self._returned.touched or set(),
                "letters": self._blame.touched or set(), "suspects": self._blame.suspects.touched or set(),
                "lost": self._lost.touched or set(), "outputs": self._new_outputs,
            }  # fmt: skip
        now: dict[str, Iterable[int]] = {
            "leases": self._leases, "returned": (start for start, _ in self._returned),
            "letters": self._blame.letters, "suspects": (entry[0] for entry in self._blame.suspects),
            "lost": (start for start, _ in self._lost), "outputs": self._outputs,
        }  # fmt: skip
        return {name: stored | set(now[name]) for name, stored in self._stored.items()}

    def _rows(self, name: str, keys: list[int]) -> list[Row]:
        """The rows of a table that exist now under these keys."""
        if name == "leases":
            held = [self._leases[key] for key in keys if key in self._leases]
            return [(le.lease_id, le.holder, le.tag, msgspec.msgpack.encode(le.ranges)) for le in held]
        if name == "letters":
            letters = [self._blame.letters[key] for key in keys if key in self._blame.letters]
            return [(le.position, le.attempts, int(le.dead), storable(le.error)) for le in letters]
        if name == "outputs":
            return [(key, msgspec.msgpack.encode(self._outputs[key])) for key in keys]
        if name == "suspects":
            suspects = self._blame.suspects
            return [entry for key in keys if (entry := suspects.entry_at(key)) is not None]
        ranges = self._returned if name == "returned" else self._lost
        return [(key, stop) for key in keys if (stop := ranges.stop_of(key)) is not None]


def _snapshot_of(claim: Claim) -> Snapshot:
    """What the rows of a store say.

    Raises:
        LedgerError: they cannot be read.
    """
    rows: Rows = claim.rows
    try:
        spec = msgspec.msgpack.decode(claim.meta[SPEC], type=LedgerSpec)
        head = msgspec.msgpack.decode(claim.meta[HEAD], type=Head)
        leases = [
            Lease(i, who, tag, math.inf, msgspec.msgpack.decode(bytes(ranges), type=list[Range]))
            for i, who, tag, ranges in rows["leases"]
        ]
    except (KeyError, msgspec.DecodeError) as error:
        raise _damaged(error) from error
    letters = [Letter(at, attempts, bool(dead), text) for at, attempts, dead, text in rows["letters"]]
    returned = [(start, stop) for start, stop in rows["returned"]]
    suspects = [(start, stop, losses) for start, stop, losses in rows["suspects"]]
    lost = [(start, stop) for start, stop in rows["lost"]]
    return Snapshot(spec, head, returned, leases, letters, suspects, lost)


def storable(text: str) -> str:
    """A text that every database takes: PostgreSQL's know no NUL, and none knows half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _damaged(error: Exception) -> LedgerError:
    return LedgerError(f"the ledger's store is damaged: {error}", START_OVER)
