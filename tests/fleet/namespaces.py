"""Ray's tests run in a network namespace that has nothing but `lo`.

Ray listens on the machine's own address, whatever it is told; in such a namespace there is none.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = "SHOESTRING_TEST_NAMESPACE"


def run_inside(tests: Path, timeout_s: float) -> str:
    """Run the tests of this file that are for the inside, in a namespace of their own; what pytest said."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("a network namespace takes root, unshare and iproute2")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", str(tests)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words],
        cwd=root,
        env=os.environ | {INSIDE: "1", "PYTHONPATH": str(root), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout
