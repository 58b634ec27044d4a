"""A byte-level BPE tokenizer through which any bytes go and come back (source: ours; byte-level BPE:
Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import decoders, models, pre_tokenizers, trainers

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError, DataError

START = "<|start|>"
END = "<|end|>"
# Words and signs with the space before them, digits one by one, and the start of a line with its
# indentation in one piece: in source code that is where most of the spaces are.
SPLIT = r" ?\p{L}+| ?[^\s\p{L}\p{N}]+|\p{N}|\n[ ]*|[ ]+(?= )|\s+"
# The same for ASCII text, as Python's own engine runs it several times as fast.
_ASCII_SPLIT = re.compile(r" ?[A-Za-z]+| ?[^A-Za-z0-9\t-\r ]+|[0-9]|\n *| +(?= )|[\t-\r ]+")
_PIECE_CHARS = 1 << 14
_KNOWN_WORDS = 1 << 20
_PROBE = " a  b\n\n\tc. \u00e9 \u4e16 <x>  ".encode() + bytes(range(256))
# No piece of SPLIT goes on from a visible character over a line end, so a cut there changes nothing.
_SAFE_CUT = re.compile(r"(?<=\S)(?=\n)")
_FOREIGN_BYTES = re.compile("([\udc80-\udcff]+)")

Tokens = NDArray[np.uint32]


class TokenizerConfig(Config):
    """How text becomes tokens.

    Attributes:
        vocab_size: number of tokens in all, the 256 bytes and 2 special ones among them.
        sample_bytes: as much of the training text, spread over its files, is learned from.
        file: a tokenizer.json to use instead of learning one.
    """

    vocab_size: int = Field(default=4096, ge=258)
    sample_bytes: int = Field(default=16 << 20, ge=1)
    file: str = ""


class TextTokenizer:
    """Bytes to token ids and back, exactly: `decode(encode(data)) == data` for any bytes.

    Attributes:
        vocab_size: ids are below it.
        start_id, end_id: the special tokens around a document; text that looks like them is text.

    Args:
        inner: a byte-level tokenizer of the `tokenizers` package.

    Raises:
        ConfigError: when it is not byte-level, changes text, or lacks the special tokens.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._inner.encode_special_tokens = True
        byte_of = _byte_of_char()
        vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=0) + 1
        added = {token.content for token in inner.get_added_tokens_decoder().values()}
        complete = {START, END} <= added and byte_of.keys() <= vocabulary.keys()
        if inner.normalizer is not None or not complete:
            raise _unfit(f"is not byte-level, normalises text, or lacks {START} and {END}")
        self.start_id, self.end_id = vocabulary[START], vocabulary[END]
        settings = json.loads(inner.to_str())
        # Words can be encoded one by one where nothing but SPLIT decides what a word is.
        usual = json.loads(_pre_tokenizer().__getstate__())
        self._by_word = settings["pre_tokenizer"] == usual and added == {START, END}
        self._known: dict[str, list[int]] = {}
        # A word is a word already: split anew by itself, spaces would fall apart for want of what follows.
        self._one_word = tokenizers.Tokenizer.from_str(inner.to_str())
        self._one_word.encode_special_tokens = True
        self._one_word.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._id_of_byte = {byte: vocabulary[char] for char, byte in byte_of.items()}
        self._bytes_of_id = [b""] * self.vocab_size
        for token, number in vocabulary.items():
            if token not in added:
                self._bytes_of_id[number] = bytes(byte_of[char] for char in token)
            elif token not in (START, END):
                self._bytes_of_id[number] = token.encode("utf-8")
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise _unfit("loses or adds characters")

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """From a standard tokenizer.json.

        Raises:
            ConfigError: when it cannot be read or does not fit.
        """
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"cannot read the tokenizer {path}: {error}", "check the path") from error
        # The package raises bare Exception for a file that it cannot parse.
        except Exception as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{path} is no tokenizer file: {error}", "give a tokenizer.json") from error

    def save(self, path: Path) -> None:
        """Write the standard tokenizer.json, whole or not at all."""
        part = path.with_suffix(".tmp")
        part.write_text(self.to_json(), encoding="utf-8")
        part.rename(path)

    def to_json(self) -> str:
        """The contents of the standard tokenizer.json."""
        return str(self._inner.to_str(pretty=True))

    def encode(self, data: bytes) -> list[int]:
        """Token ids of a text, without the special tokens."""
        ids: list[int] = self.encode_batch([data])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """Token ids of several texts, on all cores; uint32 [tokens] each, without the special tokens."""
        pieces: list[str] = []
        plan: list[list[int | bytes]] = []
        for data in texts:
            plan.append([])
            for piece in _pieces(data):
                plan[-1].append(len(pieces) if isinstance(piece, str) else piece)
                if isinstance(piece, str):
                    pieces.append(piece)
        ids = self._encode_pieces(pieces)
        return [self._joined(parts, ids) for parts in plan]

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that these ids stand for; special tokens stand for none."""
        return b"".join([self._bytes_of_id[number] for number in ids])

    def _encode_pieces(self, pieces: list[str]) -> list[Tokens]:
        words = {
            number: _ASCII_SPLIT.findall(piece)
            for number, piece in enumerate(pieces)
            if self._by_word and piece.isascii()
        }
        if len(self._known) > _KNOWN_WORDS:
            self._known.clear()
        new = [word for word in set().union(*words.values()) if word not in self._known]
        whole = [piece for number, piece in enumerate(pieces) if number not in words]
        found = self._one_word.encode_batch_fast(new, add_special_tokens=False)
        self._known.update(zip(new, (encoding.ids for encoding in found), strict=True))
        rest = iter(self._inner.encode_batch_fast(whole, add_special_tokens=False))
        return [
            np.array(list(chain.from_iterable(map(self._known.__getitem__, words[number]))), np.uint32)
            if number in words
            else np.array(next(rest).ids, np.uint32)
            for number in range(len(pieces))
        ]

    def _joined(self, parts: list[int | bytes], ids: list[Tokens]) -> Tokens:
        found = [
            ids[part] if isinstance(part, int) else np.array([self._id_of_byte[b] for b in part], np.uint32)
            for part in parts
        ]
        return np.concatenate(found) if found else np.zeros(0, np.uint32)


def train_tokenizer(texts: Iterable[bytes], vocab_size: int) -> TextTokenizer:
    """Learn a tokenizer; the same texts give the same one.

    Raises:
        DataError: when there is no text at all.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = _pre_tokenizer()
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        initial_alphabet=sorted(_byte_of_char()),
        show_progress=False,
    )
    seen_bytes = 0

    def pieces() -> Iterator[str]:
        nonlocal seen_bytes
        for data in texts:
            seen_bytes += len(data)
            yield from (piece for piece in _pieces(data) if isinstance(piece, str))

    inner.train_from_iterator(pieces(), trainer)
    if not seen_bytes:
        raise DataError("there is no text to learn a tokenizer from", "give files that hold text")
    return TextTokenizer(inner)


def _unfit(why: str) -> ConfigError:
    return ConfigError(f"this tokenizer {why}", "leave tokenizer.file empty to learn one from the data")


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pieces(data: bytes) -> Iterator[str | bytes]:
    """Text in pieces that are encoded as if they were whole, and the bytes that are not UTF-8."""
    for part in _FOREIGN_BYTES.split(data.decode("utf-8", "surrogateescape")):
        if not part:
            continue
        if "\udc80" <= part[0] <= "\udcff":
            yield part.encode("utf-8", "surrogateescape")
            continue
        start = 0
        while len(part) - start > _PIECE_CHARS:
            cut = _SAFE_CUT.search(part, start + _PIECE_CHARS)
            if cut is None:
                break
            yield part[start : cut.start()]
            start = cut.start()
        yield part[start:]


def _byte_of_char() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves, the other bytes in order for the characters from 256.
    """
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}
