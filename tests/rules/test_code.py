"""The house rules on code: each holds everywhere, finds its breach and lets the right way pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.rules import checks
from tests.rules.source import EVERYTHING, PRODUCT, Source, python_files

LONG_BODY = "    x = 1\n" * checks.MAX_FUNCTION_LINES


@dataclass(frozen=True)
class Rule:
    """A check, the folders it is for, a path to try it at, and what it must find and let pass."""

    check: Callable[[Source], Iterator[str]]
    folders: tuple[str, ...]
    bad: tuple[str, ...]
    good: tuple[str, ...]
    path: str = "shoestring/data/thing.py"


RULES = (
    Rule(checks.long_functions, EVERYTHING, (f"def f():\n{LONG_BODY}",), (f"def f():\n{LONG_BODY[10:]}",)),
    Rule(checks.long_files, EVERYTHING, ("x = 1\n" * 501,), ("x = 1\n" * 500,)),
    Rule(checks.deep_folders, PRODUCT, ("",), (), "shoestring/a/b/c/d/e.py"),
    Rule(checks.deep_folders, PRODUCT, (), ("",), "shoestring/a/b/c/d.py"),
    Rule(
        checks.time_outside_the_clock,
        PRODUCT,
        ("import time", "from time import sleep", "datetime.datetime.now()", "date.today()"),
        ("from shoestring.base.clock import SystemClock\nSystemClock().now()", "datetime.fromtimestamp(3)"),
    ),
    Rule(
        checks.ray_outside_ray_files,
        PRODUCT,
        ("import ray", "from ray.util import x", "def f():\n    import ray",
         "importlib.import_module('ray')"),
        ("from shoestring.fleet import ray_fleet", "import rayleigh"),
    ),
    Rule(checks.ray_outside_ray_files, PRODUCT, (), ("import ray",), "shoestring/fleet/ray_fleet.py"),
    Rule(
        checks.torch_outside_its_packages,
        PRODUCT,
        ("import torch", "def f():\n    from torch import nn"),
        ("import tokenizers",),
    ),
    Rule(checks.torch_outside_its_packages, PRODUCT, (), ("import torch",), "shoestring/models/m.py"),
    Rule(
        checks.foreign_imports_of_base,
        PRODUCT,
        ("import numpy", "from shoestring.data import ledger"),
        ("import json, pydantic", "from shoestring.base.errors import ConfigError"),
        "shoestring/base/thing.py",
    ),
    Rule(
        checks.jobs_that_know_each_other,
        PRODUCT,
        ("from shoestring.jobs.align import x", "from shoestring.jobs import align"),
        ("from shoestring.jobs.pretrain.task import x",),
        "shoestring/jobs/pretrain/job.py",
    ),
    Rule(checks.tests_in_the_product, PRODUCT, ("import pytest", "from tests import x"), ("import testy",)),
    Rule(
        checks.module_level_state,
        PRODUCT,
        ("cache = {}", "seen: set[int] = set()", "def f():\n    global x",
         "A = []\nA.append(1)", "A = {}\nA[1] = 2"),
        ("NAMES = {'a': 1}", "def f():\n    seen = []\n    seen.append(1)", "x = (1, 2)"),
    ),
    Rule(
        checks.defaults_at_the_reader,
        PRODUCT,
        ("config.get('a', 1)", "self.options.get('a', 1)", "getattr(settings, 'a', 1)"),
        ("counts.get('a')", "config.a", "getattr(settings, name)"),
    ),
    Rule(
        checks.names_without_units,
        PRODUCT,
        ("def f(timeout: float): ...", "class A:\n    poll_interval: int = 3", "def f(size_mb: int): ...",
         "wait_seconds: float = 1.0"),
        ("def f(timeout_s: float, batch: int, size_bytes: int): ...", "class A:\n    interval: Range"),
    ),
    Rule(
        checks.unpickling,
        PRODUCT,
        ("import pickle", "import dill", "from joblib import load", "import marshal, shelve", "torch.load(f)",
         "torch.load(f, weights_only=False)", "from torch import load", "np.load(f, allow_pickle=True)",
         "def f():\n    import cloudpickle", "eval('1')"),
        ("torch.load(f, weights_only=True)", "np.load(f)", "model.eval()"),
    ),
    *(
        Rule(
            checks.rows_that_are_pickled,
            PRODUCT,
            ("from multiprocessing import Queue", "import torch.multiprocessing as mp", "torch.save(x, f)",
             "from concurrent.futures import ProcessPoolExecutor", "dist.broadcast_object_list(rows)",
             "dist.all_gather_object(rows, x)", "table.to_pandas().to_pickle(f)", "from torch import save"),
            ("from concurrent.futures import ThreadPoolExecutor", "np.save(f, x)", "dist.broadcast(x)",
             "tensorfiles.save(x)", "import queue"),
            f"shoestring/{package}/thing.py",
        )
        for package in sorted(checks.ROW_PACKAGES)
    ),
    Rule(checks.rows_that_are_pickled, PRODUCT, (), ("torch.save(x, f)",), "shoestring/train/thing.py"),
    Rule(
        checks.listening_to_the_world,
        PRODUCT,
        ("s.bind(('0.0.0.0', 1))", "s.bind(('', 1))", "HOST = '::'"),
        ("s.bind(('127.0.0.1', 0))", "s.bind(str(path))"),
    ),
    Rule(
        checks.swallowed_errors,
        PRODUCT,
        ("try:\n    f()\nexcept Exception:\n    x = 1", "try:\n    f()\nexcept:\n    pass",
         "try:\n    f()\nexcept (OSError, BaseException) as e:\n    x = 1"),
        ("try:\n    f()\nexcept Exception as e:\n    g(e)", "try:\n    f()\nexcept OSError:\n    pass",
         "try:\n    f()\nexcept BaseException:\n    undo()\n    raise"),
    ),
    Rule(
        checks.missing_docstrings,
        PRODUCT,
        ("x = 1", "'''M.'''\ndef f(): ...", "'''M.'''\nclass A:\n    '''A.'''\n    def f(self): ..."),
        ("'''M.'''\ndef _f(): ...", "'''M.'''\nclass A:\n    '''A.'''\n    def __init__(self): ..."),
    ),
    Rule(
        checks.idle_sleeps,
        ("tests",),
        ("def test_x():\n    time.sleep(1)",),
        ("def wait():\n    while not done():\n        time.sleep(0.01)", "clock.sleep(1)"),
    ),
    Rule(checks.mocks, ("tests",), ("from unittest.mock import Mock",), ("import pytest",)),
    Rule(
        checks.tests_that_cannot_fail,
        ("tests",),
        ("def test_x():\n    f()",),
        ("def test_x():\n    assert f()", "def test_x():\n    with pytest.raises(E):\n        f()"),
    ),
)  # fmt: skip

NAMES = [f"{rule.check.__name__}-{number}" for number, rule in enumerate(RULES)]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_rule_holds_everywhere(rule: Rule) -> None:
    files = python_files(rule.folders)
    assert files, "there is nothing to look at"
    breaches = [breach for source in files for breach in rule.check(source)]
    assert not breaches, f"{rule.check.__doc__}\n" + "\n".join(breaches)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_rule_can_be_broken_and_kept(rule: Rule) -> None:
    for text in rule.bad:
        assert list(rule.check(Source(rule.path, text))), f"not found: {text}"
    for text in rule.good:
        assert not list(rule.check(Source(rule.path, text))), f"found wrongly: {text}"
