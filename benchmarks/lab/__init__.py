"""Test hosts on one machine: network namespaces with shaped links, delay, partitions and CPU quotas.

See docs/design/lab.md, and `python -m benchmarks.lab --help`.
"""

from benchmarks.lab.config import LabConfig, LabError, require
from benchmarks.lab.lab import Host, Lab, RunResult
from benchmarks.lab.namespaces import enter
from benchmarks.lab.network import Counters

__all__ = ["Counters", "Host", "Lab", "LabConfig", "LabError", "RunResult", "enter", "require"]
