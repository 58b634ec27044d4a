"""The rules on code, each a function: source -> what breaks the rule, by place."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from tests.rules.source import Source, dotted, imports_of

MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 500
MAX_DEPTH = 3

CLOCK = "shoestring/base/clock.py"
TORCH_PACKAGES = {"parallel", "models", "train", "infer", "evaluate", "jobs"}
BASE_PACKAGES = set(sys.stdlib_module_names) | {"pydantic", "pydantic_core", "msgspec"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
ROW_PACKAGES = {"infer", "data", "fleet"}
PICKLING_IMPORTS = ("multiprocessing", "torch.multiprocessing", "copyreg", "jsonpickle", "cloudpickle")
PICKLING_CALLS = re.compile(
    r"(^torch\.save|(^|\.)(to_pickle|read_pickle|ProcessPoolExecutor|\w*_object(_list)?))$"
)
MUTABLE_CALLS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}
MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "clear"}
SETTINGS_NAMES = re.compile(r"(config|settings|options|cfg|conf)$")
NUMBERS = {"int", "float", "int | None", "float | None"}
DURATION_WORDS = {"timeout", "interval", "duration", "delay", "elapsed", "latency", "backoff", "ttl", "grace"}
WRONG_UNITS = re.compile(r"_(sec|secs|second|seconds|msec|millis|milliseconds|kb|mb|gb|kib|mib|gib|nbytes)$")
BROAD = {"Exception", "BaseException"}
CHECKING_WORDS = ("check", "assert", "raises", "golden", "conform", "expect", "verify")

Functions = ast.FunctionDef | ast.AsyncFunctionDef


def long_functions(source: Source) -> Iterator[str]:
    """Functions up to 70 lines."""
    for node in ast.walk(source.tree):
        if isinstance(node, Functions) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{source.place(node)}: {node.name} has {lines} lines"


def long_files(source: Source) -> Iterator[str]:
    """Files up to 500 lines."""
    lines = source.text.count("\n") + 1
    if lines > MAX_FILE_LINES + 1:
        yield f"{source.path} has {lines} lines"


def deep_folders(source: Source) -> Iterator[str]:
    """Folders up to 3 deep under shoestring/."""
    if len(source.parts) - 2 > MAX_DEPTH:
        yield f"{source.path} is too deep"


def time_outside_the_clock(source: Source) -> Iterator[str]:
    """Time comes from base/clock.py."""
    if source.path == CLOCK:
        return
    for node, name in imports_of(source):
        if name.split(".")[0] == "time":
            yield f"{source.place(node)}: import of time"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and re.search(r"\bdate(time)?\.(now|utcnow|today)$", dotted(node.func)):
            yield f"{source.place(node)}: {dotted(node.func)}"
        if isinstance(node, ast.Call) and dotted(node.func) == "asyncio.sleep":
            yield f"{source.place(node)}: asyncio.sleep"


def ray_outside_ray_files(source: Source) -> Iterator[str]:
    """Ray is imported only in files named ray_*.py."""
    if source.parts[-1].startswith("ray_"):
        return
    for node, name in imports_of(source):
        if name.split(".")[0] == "ray":
            yield f"{source.place(node)}: import of {name}"


def torch_outside_its_packages(source: Source) -> Iterator[str]:
    """Torch only in parallel, models, train, infer, evaluate and jobs."""
    if source.parts[1] in TORCH_PACKAGES:
        return
    for node, name in imports_of(source):
        if name.split(".")[0] in ("torch", "torchgen"):
            yield f"{source.place(node)}: import of {name}"


def foreign_imports_of_base(source: Source) -> Iterator[str]:
    """base stands on the standard library, pydantic and msgspec alone."""
    if source.parts[:2] != ("shoestring", "base"):
        return
    for node, name in imports_of(source):
        known = name.split(".")[0] in BASE_PACKAGES or name.startswith("shoestring.base")
        if not known:
            yield f"{source.place(node)}: import of {name}"


def jobs_that_know_each_other(source: Source) -> Iterator[str]:
    """Jobs are independent of one another."""
    if source.parts[:2] != ("shoestring", "jobs"):
        return
    own = source.parts[2].removesuffix(".py")
    for node, name in imports_of(source):
        parts = name.split(".")
        if parts[:2] == ["shoestring", "jobs"] and parts[2:3] != [own]:
            yield f"{source.place(node)}: {own} imports {name}"


def tests_in_the_product(source: Source) -> Iterator[str]:
    """The product imports neither tests nor benchmarks."""
    for node, name in imports_of(source):
        if name.split(".")[0] in ("tests", "benchmarks", "pytest", "hypothesis", "unittest"):
            yield f"{source.place(node)}: import of {name}"


def module_level_state(source: Source) -> Iterator[str]:
    """No module-level mutable state: a container at module level is an UPPER_CASE constant, never changed."""
    constants = set()
    for node in source.tree.body:
        for name, value in _assigned(node):
            if not _is_container(value) or name == "__all__":
                continue
            if name.lstrip("_").isupper():
                constants.add(name)
            else:
                yield f"{source.place(node)}: {name} can change; name a constant in capitals"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield f"{source.place(node)}: global {', '.join(node.names)}"
        for name in _changed(node) & constants:
            yield f"{source.place(node)}: the constant {name} is changed"


def defaults_at_the_reader(source: Source) -> Iterator[str]:
    """No config.get(key, default) and no getattr(config, name, default)."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        arguments = len(node.args) + len(node.keywords)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "setdefault", "pop"):
            owner, wanted = dotted(node.func.value), 2
        elif dotted(node.func) == "getattr" and node.args:
            owner, wanted = dotted(node.args[0]), 3
        else:
            continue
        if arguments >= wanted and SETTINGS_NAMES.search(owner.lower()):
            yield f"{source.place(node)}: a default for {owner} at its reader"


def names_without_units(source: Source) -> Iterator[str]:
    """A duration's name ends in its unit (_s, _ms), a size's in _bytes."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.arg):
            name, annotation = node.arg, node.annotation
        elif isinstance(node, ast.AnnAssign):
            name, annotation = dotted(node.target).split(".")[-1], node.annotation
        else:
            continue
        if annotation is None or ast.unparse(annotation) not in NUMBERS:
            continue
        if name.split("_")[-1] in DURATION_WORDS or WRONG_UNITS.search(name):
            yield f"{source.place(node)}: {name} should end in _s, _ms or _bytes"


def unpickling(source: Source) -> Iterator[str]:
    """Nothing unpickles what it did not write: no pickle, torch.load only of weights, no eval."""
    for node, name in imports_of(source):
        if name.split(".")[0] in UNPICKLERS or name in ("torch.load", "torch.serialization.load"):
            yield f"{source.place(node)}: import of {name}"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        function = dotted(node.func)
        if function in ("torch.load", "torch.serialization.load") and not _has_true(node, "weights_only"):
            yield f"{source.place(node)}: torch.load without weights_only=True"
        if function in ("np.load", "numpy.load") and _has_true(node, "allow_pickle"):
            yield f"{source.place(node)}: numpy.load with allow_pickle"
        if function in ("eval", "exec", "yaml.load", "yaml.unsafe_load"):
            yield f"{source.place(node)}: {function}"


def rows_that_are_pickled(source: Source) -> Iterator[str]:
    """Rows, tensors and messages cross between processes as Arrow and msgpack: in infer, data and fleet
    nothing pickles, and there are no queues, pipes, pools and collectives that do."""
    if source.parts[1] not in ROW_PACKAGES:
        return
    for node, name in imports_of(source):
        pickles = any(f"{name}.".startswith(f"{one}.") for one in PICKLING_IMPORTS)
        if pickles or PICKLING_CALLS.search(name):
            yield f"{source.place(node)}: import of {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and PICKLING_CALLS.search(dotted(node.func)):
            yield f"{source.place(node)}: {dotted(node.func)}"


def listening_to_the_world(source: Source) -> Iterator[str]:
    """Nothing listens beyond loopback and private sockets."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield f"{source.place(node)}: {node.value!r} is every interface"
        if isinstance(node, ast.Call) and dotted(node.func).endswith(".bind") and node.args:
            address = node.args[0]
            host = address.elts[0] if isinstance(address, ast.Tuple) and address.elts else None
            if isinstance(host, ast.Constant) and host.value == "":
                yield f"{source.place(node)}: an empty host is every interface"


def swallowed_errors(source: Source) -> Iterator[str]:
    """Whoever catches every exception raises again or uses what was caught."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type] if node.type else []
        broad = node.type is None or any(dotted(one).split(".")[-1] in BROAD for one in caught)
        inside = [inner for statement in node.body for inner in ast.walk(statement)]
        raises = any(isinstance(inner, ast.Raise) for inner in inside)
        used = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
        shown = any(isinstance(inner, ast.Call) and "traceback." in dotted(inner.func) for inner in inside)
        if broad and not (raises or used or shown):
            yield f"{source.place(node)}: an error of any kind is swallowed"


def missing_docstrings(source: Source) -> Iterator[str]:
    """Modules, public classes and public functions say what they are for."""
    if not ast.get_docstring(source.tree):
        yield f"{source.path}: the module has no docstring"
    yield from _undocumented(source, source.tree)


def idle_sleeps(source: Source) -> Iterator[str]:
    """A test never sleeps to wait for a condition: between two looks at it, in a loop, at most."""
    looping = {
        id(inner)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.While | ast.For)
        for inner in ast.walk(node)
    }
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Call)
            and dotted(node.func) in ("time.sleep", "sleep")
            and id(node) not in looping
        ):
            yield f"{source.place(node)}: a sleep outside a polling loop"


def mocks(source: Source) -> Iterator[str]:
    """No mocks: a fake ships with each interface."""
    for node, name in imports_of(source):
        if name.startswith(("unittest.mock", "mock", "pytest_mock")):
            yield f"{source.place(node)}: import of {name}"


def tests_that_cannot_fail(source: Source) -> Iterator[str]:
    """Every test holds something against something."""
    for node in ast.walk(source.tree):
        if not isinstance(node, Functions) or not node.name.startswith("test_"):
            continue
        asserts = any(isinstance(inner, ast.Assert | ast.Raise) for inner in ast.walk(node))
        calls = {dotted(inner.func).lower() for inner in ast.walk(node) if isinstance(inner, ast.Call)}
        checks = any(word in call for call in calls for word in CHECKING_WORDS)
        if not (asserts or checks):
            yield f"{source.place(node)}: {node.name} checks nothing"


def _assigned(node: ast.stmt) -> list[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        return [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return [(node.target.id, node.value)]
    return []


def _is_container(value: ast.expr) -> bool:
    displays = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp
    is_call = isinstance(value, ast.Call) and dotted(value.func).split(".")[-1] in MUTABLE_CALLS
    return isinstance(value, displays) or is_call


def _changed(node: ast.AST) -> set[str]:
    """Names of containers that a node changes."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        return {dotted(node.func.value)}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.AugAssign):
        targets = [node.target]
    subscripts = {dotted(target.value) for target in targets if isinstance(target, ast.Subscript)}
    return subscripts | ({dotted(node.target)} if isinstance(node, ast.AugAssign) else set())


def _has_true(call: ast.Call, name: str) -> bool:
    values = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return any(isinstance(value, ast.Constant) and value.value is True for value in values)


def _undocumented(source: Source, owner: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in owner.body:
        if not isinstance(node, Functions | ast.ClassDef) or node.name.startswith("_"):
            continue
        marks = {dotted(mark).split(".")[-1] for mark in node.decorator_list}
        if not ast.get_docstring(node) and not marks & {"overload", "setter", "override"}:
            yield f"{source.place(node)}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(source, node)
