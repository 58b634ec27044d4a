"""The types of what stages make, agreed upon in the trial, and of the output (source: ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from shoestring.base.errors import ConfigError, first_line
from shoestring.infer.graph import ERROR, IDENTITY, Graph, nearest

_OWN, _MANY = b"own", b"many"


def marked(own: pa.Schema, inherited: pa.Schema, many: bool) -> pa.Schema:
    """Of an answer's segment: the stage's own columns first, and whether it emits many items."""
    marks = {_OWN: str(len(own)).encode(), _MANY: str(int(many)).encode()}
    return pa.schema([*own, *inherited], metadata=marks)


def item_schema(segment: pa.Schema) -> pa.Schema:
    """A stage's own columns, of one item, from the schema of a segment that it has written.

    This (serialised) is what InferPayload.schemas wants; see `agreed` for many segments.
    """
    metadata = segment.metadata or {}
    count = int(metadata[_OWN]) if _OWN in metadata else len(segment)
    return pa.schema([segment.field(at) for at in range(count)], metadata=metadata)


def emits_many(schema: pa.Schema) -> bool:
    """Whether its stage answers with counts."""
    metadata = schema.metadata or {}
    return _MANY in metadata and metadata[_MANY] == b"1"


def agreed(segments: Iterable[pa.Schema]) -> pa.Schema:
    """One schema of a stage for all that it will answer, from what it has answered so far.

    Whole numbers give way to floats, and what was always empty becomes text.

    Raises:
        ConfigError: its answers differ in kind.
    """
    own = [item_schema(one) for one in segments]
    found = [one for one in own if len(one)] or own[:1]
    many = any(emits_many(one) for one in own)
    if not found:
        return marked(pa.schema([]), pa.schema([]), many)
    try:
        merged = pa.unify_schemas([one.remove_metadata() for one in found], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigError(
            f"a stage's answers differ in type: {first_line(error)}",
            "let it give the same types for every batch",
        ) from error
    fields = [pa.field(one.name, _settled(one.type)) for one in merged]
    return marked(pa.schema(fields), pa.schema([]), many)


def output_schema(graph: Graph, schemas: Mapping[str, pa.Schema], columns: Iterable[str] = ()) -> pa.Schema:
    """Of the job's files: `row`, input columns, those of kept stages, `error`.

    Args:
        graph: with its source.
        schemas: stage -> its `item_schema`.
        columns: of the sink's settings: to keep beside `row` and `error`; empty: all.

    Raises:
        ConfigError: two columns would have one name, or one to keep is in none.
    """
    source = graph.source if graph.source is not None else pa.schema([])
    owner: dict[str, str] = {IDENTITY: "shoestring", ERROR: "shoestring"}
    fields = []
    for name, field in zip(input_names(source), source, strict=True):
        _claim(owner, name, "the source")
        fields.append(pa.field(name, _settled(field.type)))
    for stage in graph.kept:
        for field in schemas[stage]:
            _claim(owner, field.name, f"stage {stage}")
            fields.append(pa.field(field.name, listed(_settled(field.type), depth(graph, schemas, stage))))
    wanted = tuple(columns)
    known = [one.name for one in fields]
    for name in wanted:
        if name not in (*known, IDENTITY, ERROR):
            raise ConfigError(f"sink.columns names {name!r}, which no row has", nearest(name, known))
    kept = [one for one in fields if not wanted or one.name in wanted]
    return pa.schema([pa.field(IDENTITY, pa.string()), *kept, pa.field(ERROR, pa.string())])


def input_names(source: pa.Schema) -> list[str]:
    """Input columns as the output calls them: `row` and `error`, as files of another job of ours have them,
    become `input_row` and `input_error`."""
    return [f"input_{name}" if name in (IDENTITY, ERROR) else name for name in source.names]


def depth(graph: Graph, schemas: Mapping[str, pa.Schema], stage: str) -> int:
    """How deep its values are in lists: stages on the way from the source that emit many, itself too."""
    return sum(emits_many(schemas[name]) for name in graph.path(stage))


def listed(kind: pa.DataType, levels: int) -> pa.DataType:
    """Lists of lists of a type."""
    for _ in range(levels):
        kind = pa.list_(kind)
    return kind


def check_names(stage: str, own: Iterable[str], given: Iterable[str]) -> None:
    """A stage's columns are not called as those that it was given.

    Raises:
        ConfigError: one is.
    """
    known = set(given)
    for name in own:
        if name in known:
            raise _clash(name, f"stage {stage}", "what comes in")


def _claim(owner: dict[str, str], name: str, who: str) -> None:
    if name in owner:
        raise _clash(name, who, owner[name])
    owner[name] = who


def _clash(name: str, who: str, other: str) -> ConfigError:
    return ConfigError(
        f"two columns are called {name!r}: one of {other}, one of {who}",
        "let the stage give its column another name, or leave one out (source.columns, `keep = false`)",
    )


def _settled(kind: pa.DataType) -> pa.DataType:
    """Text in place of a type that nothing is known of."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, _settled(one.type)) for one in kind])
    return kind
