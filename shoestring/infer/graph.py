"""The stages of a job as a tree: names, order, what each reads and hands on (source: ours)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from shoestring.base.errors import ConfigError
from shoestring.data.output_state import ERROR as ERROR
from shoestring.data.output_state import IDENTITY as IDENTITY
from shoestring.infer.config import ROWS, InferConfig, StageConfig

RESERVED = (ROWS, "load", "write")
"""Names that pools and the source have."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OTHER = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Node:
    """A stage in its place.

    Attributes:
        name: the same for the same settings; unique.
        config: its settings.
        parent: the stage whose items come in, or `rows`.
        children: that its items go to.
        keep: whether its columns are in the output.
        reads: columns that it is given; empty: all.
        passes: columns of its input that its answers carry on, for stages further down; None: all of them.
    """

    name: str
    config: StageConfig
    parent: str
    children: tuple[str, ...]
    keep: bool
    reads: tuple[str, ...]
    passes: tuple[str, ...] | None

    @property
    def leaf(self) -> bool:
        """Whether nothing comes after it."""
        return not self.children


@dataclass(frozen=True)
class Graph:
    """All stages, each after its parent.

    Attributes:
        nodes: by name, parents first.
        source: schema of the rows; None: not known here.
    """

    nodes: Mapping[str, Node]
    source: pa.Schema | None

    @classmethod
    def of(cls, config: InferConfig, source: pa.Schema | None) -> Graph:
        """Names, order and columns, checked; without a source what is read of it is not.

        Raises:
            ConfigError: no stage; two of one name, or one that is taken; `after` names none; stages wait for
                each other in a circle; a stage reads a column that the source has not.
        """
        if not config.stages:
            raise ConfigError("the job has no stage", "add one: --set stages='[{uses = \"FILE.py:CLASS\"}]'")
        names = stage_names(config.stages)
        parents = _parents(config.stages, names)
        order = _ordered(names, parents)
        by_name = dict(zip(names, config.stages, strict=True))
        children = {name: tuple(one for one in order if parents[one] == name) for name in order}
        nodes = {}
        for name in order:
            own = by_name[name]
            if parents[name] == ROWS and source is not None:
                _check_columns(name, own.columns, source.names)
            nodes[name] = Node(
                name=name,
                config=own,
                parent=parents[name],
                children=children[name],
                keep=not children[name] if own.keep is None else own.keep,
                reads=own.columns,
                passes=_passes(name, children, by_name),
            )
        return cls(nodes, source)

    @property
    def roots(self) -> tuple[str, ...]:
        """Stages that get the rows themselves."""
        return tuple(name for name, node in self.nodes.items() if node.parent == ROWS)

    @property
    def kept(self) -> tuple[str, ...]:
        """Stages whose columns are in the output, in order."""
        return tuple(name for name, node in self.nodes.items() if node.keep)

    def path(self, name: str) -> tuple[str, ...]:
        """Stages from the source to this one, itself included."""
        found: list[str] = []
        while name != ROWS:
            found.append(name)
            name = self.nodes[name].parent
        return tuple(reversed(found))


def nearest(name: str, known: Sequence[str]) -> str:
    """What a wrong name may have meant, as words for `todo`.

    Example: `did you mean 'text'? there are: text, label`.
    """
    close = difflib.get_close_matches(name, known, n=1)
    there = f"there are: {', '.join(known)}" if known else "there are none"
    return f"did you mean {close[0]!r}? {there}" if close else there


def _check_columns(stage: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    for column in wanted:
        if column not in known:
            raise ConfigError(
                f"stage {stage} reads a column {column!r}, which the source has not", nearest(column, known)
            )


def stage_names(stages: Sequence[StageConfig]) -> list[str]:
    """Given ones as they are; the others from what the stage uses, numbered where two are alike."""
    given = [one.name for one in stages if one.name]
    for name in given:
        if given.count(name) > 1:
            raise ConfigError(f"two stages are called {name!r}", "give each stage a name of its own")
        if name in RESERVED:
            raise ConfigError(f"a stage cannot be called {name!r}", "give it another name; that one is taken")
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a stage", "use letters, digits, `_`, `-` and `.`, a letter first"
            )
    names: list[str] = []
    for place, one in enumerate(stages):
        if one.name:
            names.append(one.name)
            continue
        first = name = _short(one, place)
        taken = {*names, *given, *RESERVED}
        number = 2
        while name in taken:
            name = f"{first}-{number}"
            number += 1
        names.append(name)
    return names


def _short(stage: StageConfig, place: int) -> str:
    """`detect.py:Detector` -> `detector`, `models/resnet.onnx` -> `resnet`."""
    if not stage.uses:
        return stage.kind if stage.kind != "auto" else f"stage-{place}"
    path, _, member = stage.uses.rpartition(":")
    last = member if path and "/" not in member else PurePosixPath(stage.uses.rstrip("/")).stem
    return _OTHER.sub("-", last.lower()).strip("-") or f"stage-{place}"


def _parents(stages: Sequence[StageConfig], names: Sequence[str]) -> dict[str, str]:
    parents = {}
    for place, (name, one) in enumerate(zip(names, stages, strict=True)):
        parent = one.after or (names[place - 1] if place else ROWS)
        if parent == name:
            raise ConfigError(f"stage {name} comes after itself", "name another stage in `after`, or `rows`")
        if parent != ROWS and parent not in names:
            known = [ROWS, *(other for other in names if other != name)]
            raise ConfigError(f"stage {name} comes after {parent!r}, which is none", nearest(parent, known))
        parents[name] = parent
    return parents


def _ordered(names: Sequence[str], parents: Mapping[str, str]) -> list[str]:
    """Parents first, else as they were given."""
    order: list[str] = []
    rest = list(names)
    while rest:
        ready = next((name for name in rest if parents[name] == ROWS or parents[name] in order), None)
        if ready is None:
            raise ConfigError(
                f"stages wait for one another in a ring: {', '.join(rest)}",
                "let one of them come after `rows`",
            )
        order.append(ready)
        rest.remove(ready)
    return order


def _passes(
    name: str, children: Mapping[str, tuple[str, ...]], by_name: Mapping[str, StageConfig]
) -> tuple[str, ...] | None:
    """Columns that stages below read; those that this stage makes itself are among them, and found there."""
    below = list(children[name])
    wanted: dict[str, None] = {}
    while below:
        one = below.pop(0)
        if not by_name[one].columns:
            return None
        wanted |= dict.fromkeys(by_name[one].columns)
        below += children[one]
    return tuple(wanted)
