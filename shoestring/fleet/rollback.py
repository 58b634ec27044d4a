"""Model and ledger go back together, from one checkpoint (source: AntDT; ours where disks are damaged)."""

from __future__ import annotations

from shoestring.base.errors import CheckpointError
from shoestring.data.store import DurableLedger
from shoestring.fleet.checkpoints import Found
from shoestring.fleet.persisted import Persisted


def roll_back(found: Found, ledger: DurableLedger, kept: Persisted) -> None:
    """Take the newest intact checkpoint; without any, start again from the seed. `kept.confirmed` is then the
    step that ledger and model are at.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    if found.manifest is not None:
        ledger.replace(found.manifest.ledger)
        kept.confirmed = found.manifest.step
        kept.elapsed_s = max(kept.elapsed_s, found.manifest.elapsed_s)
        return
    if found.damaged:
        path, reason = found.damaged[0]
        raise CheckpointError(
            f"all {len(found.damaged)} checkpoints are damaged: {path}: {reason}",
            "mend the disk, or remove the run's checkpoints directory to start again from step 0",
        )
    ledger.reset()
    kept.confirmed = 0
