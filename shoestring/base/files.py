"""What files need beyond the standard library (source: ours)."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: new files, renames, removals.

    Raises:
        OSError: it cannot be done.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some mounted file systems cannot, and need not
            raise
    finally:
        os.close(number)
