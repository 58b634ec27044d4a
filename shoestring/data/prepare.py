"""From settings to packed tokens: find, split, learn the tokenizer, pack; each once (source: ours)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import DataError
from shoestring.data.packing import PackedIndex, Shard, pack, read_checked, shard_path
from shoestring.data.readers import Document, SkippedFile, read_file
from shoestring.data.sources import SourceConfig, SourceFile, find_files, name_hash, split_files
from shoestring.data.tokenizer import TextTokenizer, TokenizerConfig, train_tokenizer

# Part of every key: a change of what is stored, or of how it is made, makes old caches void.
FORMAT = "tokens-1"
_SHOWN = 3

OnPhase = Callable[[str, int, int], None]


class PackingConfig(Config):
    """How packed tokens are kept.

    Attributes:
        cache_dir: where tokenizers and packed tokens are kept for later runs.
        shard_bytes: text in one shard; 0: as the size of the data suggests.
    """

    cache_dir: str = ".shoestring"
    shard_bytes: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Prepared:
    """Data that is ready for training.

    Attributes:
        train_dir, heldout_dir: directories for `TokenDataset` and `PackedTokens`.
        tokenizer_path: the standard tokenizer.json.
        train, heldout: what they hold, with what was skipped (named), empty and left out of held-out
            because the same text stands in the training data.
        files: files found in all.
    """

    train_dir: Path
    heldout_dir: Path
    tokenizer_path: Path
    train: PackedIndex
    heldout: PackedIndex
    files: int

    @property
    def skipped(self) -> list[SkippedFile]:
        """Everything that could not be read, each file once."""
        both = [*self.train.skipped, *self.heldout.skipped]
        return list({file.path: file for file in both}.values())


def prepare(
    source: SourceConfig,
    tokenizer: TokenizerConfig,
    packing: PackingConfig,
    on_progress: OnPhase | None = None,
) -> Prepared:
    """Make the data ready, re-using whatever of it lies in the cache.

    Args:
        on_progress: called with the phase (`tokenizer`, `training text`, `held-out text`), bytes done
            and bytes in all.

    Raises:
        DataError: no data, none of it readable, nothing left to hold out, or a full disk.
        ConfigError: the tokenizer file that was given does not fit.
    """

    def show(phase: str) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(phase, done, total) if on_progress else None

    files = find_files(source)
    split = split_files(files, source.heldout_share)
    cache = Path(packing.cache_dir)
    path = _tokenizer_file(split.train, source.text_field, tokenizer, cache, show("tokenizer"))
    encoder = TextTokenizer.load(path)
    marks = [path.read_bytes().hex(), source.text_field, str(packing.shard_bytes)]
    train_dir = cache / f"tokens-{_key(split.train, *marks)}"
    train = pack(
        split.train, source.text_field, encoder, train_dir, on_progress=show("training text"),
        shard_bytes=packing.shard_bytes,
    )  # fmt: skip
    heldout_dir = cache / f"heldout-{_key((*split.train, *split.heldout), *marks)}"
    heldout = pack(
        split.heldout, source.text_field, encoder, heldout_dir, _digests(train_dir, train),
        show("held-out text"), packing.shard_bytes,
    )  # fmt: skip
    return Prepared(train_dir, heldout_dir, path, train, heldout, len(files))


def _tokenizer_file(
    files: Sequence[SourceFile], text_field: str, config: TokenizerConfig, cache: Path,
    show: Callable[[int, int], None],
) -> Path:  # fmt: skip
    if config.file:
        return Path(config.file)
    key = _key(files, text_field, str(config.vocab_size), str(config.sample_bytes))
    path = cache / f"tokenizer-{key}" / "tokenizer.json"
    if not path.exists():
        found = train_tokenizer(_sample(files, text_field, config.sample_bytes, show), config.vocab_size)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found.save(path)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error}", "free some space or check the directory"
            ) from error
    return path


def _sample(
    files: Sequence[SourceFile], text_field: str, sample_bytes: int, show: Callable[[int, int], None]
) -> Iterator[bytes]:
    """Text of files in the order of a hash, so that it is spread over all of them."""
    wanted = min(sample_bytes, sum(file.size_bytes for file in files))
    taken = 0
    skipped: list[SkippedFile] = []
    for file in sorted(files, key=lambda file: (name_hash(f"sample {file.name}"), file.url)):
        for item in read_file(file, text_field):
            if isinstance(item, SkippedFile):
                skipped.append(item)
            elif isinstance(item, Document) and taken < sample_bytes:
                part = item.data[: sample_bytes - taken]
                taken += len(part)
                show(min(taken, wanted), wanted)
                yield part
            if taken >= sample_bytes:
                return
    if not taken:
        said = "; ".join(f"{file.path} {file.reason}" for file in skipped[:_SHOWN])
        raise DataError(
            f"none of {len(files)} files holds text to learn a tokenizer from: {said or 'all are empty'}",
            "give other files (txt, md, py, jsonl, parquet, also .gz and .zst), or name the field or column",
        )


def _digests(directory: Path, index: PackedIndex) -> frozenset[str]:
    """What texts stand in packed shards; `pack` has just checked them."""
    found: set[str] = set()
    for number in range(len(index.shard_tokens)):
        shard = read_checked(shard_path(directory, number).with_suffix(".json"), Shard)
        if shard is None:
            raise DataError(f"{directory} was changed while it was read", "start the run again")
        found.update(document.digest for document in shard.documents)
    return frozenset(found)


def _key(files: Sequence[SourceFile], *settings: str) -> str:
    marks = [(f.name, f.url, f.size_bytes, f.version, f.part) for f in files]
    return hashlib.sha256(msgspec.json.encode([FORMAT, settings, marks])).hexdigest()[:20]
