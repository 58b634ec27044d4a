"""Packed tokens as a stream of documents, and as samples of fixed length (source: ours)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoestring.base.errors import DataError
from shoestring.data.packing import INDEX, PackedIndex, Shard, read_checked, shard_path
from shoestring.data.tokenizer import TextTokenizer

Tokens = NDArray[np.unsignedinteger]


class PackedTokens:
    """A directory that `pack` wrote, mapped into memory.

    Attributes:
        index: what it holds.

    Raises:
        DataError: when packing has not ended there, or a file is missing or cut off.
    """

    def __init__(self, directory: Path) -> None:
        index = read_checked(directory / INDEX, PackedIndex)
        if index is None:
            raise DataError(
                f"{directory} holds no packed tokens, or is damaged", "start the run again to pack anew"
            )
        self.index = index
        self._directory = directory
        self._shards = [self._mapped(number, tokens) for number, tokens in enumerate(index.shard_tokens)]
        # int64 [shards + 1]: tokens before each shard.
        self._before = np.cumsum([0, *index.shard_tokens], dtype=np.int64)

    def take(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """The `length` tokens of the stream from each start on; int64 [n] -> int64 [n, length].

        Raises:
            DataError: when a stretch reaches beyond the stream.
        """
        if len(starts) and (starts.min() < 0 or starts.max() + length > self._before[-1]):
            raise DataError(
                f"tokens [{starts.min()}, {starts.max() + length}) of a stream of {self._before[-1]}",
                "resume with the data and the sequence length that the run began with",
            )
        result = np.empty((len(starts), length), np.int64)
        first = np.searchsorted(self._before, starts, side="right") - 1
        for row, (start, shard) in enumerate(zip(starts.tolist(), first.tolist(), strict=True)):
            done = 0
            while done < length:
                offset = start + done - int(self._before[shard])
                found = self._shards[shard][offset : offset + length - done]
                result[row, done : done + len(found)] = found
                done, shard = done + len(found), shard + 1
        return result

    def arrays(self) -> Iterator[tuple[str, Tokens, int]]:
        """(name, tokens with start and end, bytes of text) of each document, in order; views, no copies."""
        for number, shard in enumerate(self._shards):
            about = read_checked(shard_path(self._directory, number).with_suffix(".json"), Shard)
            if about is None:
                raise self._damaged(shard_path(self._directory, number).with_suffix(".json"))
            start = 0
            for document in about.documents:
                yield document.name, shard[start : start + document.tokens], document.n_bytes
                start += document.tokens

    def documents(self) -> Iterator[tuple[list[int], int]]:
        """(token ids, bytes of text) of each document, in order.

        The ids begin with the start token and close with the end token: whoever codes all of them but
        the first has said where the document ends, too.
        """
        for _, tokens, n_bytes in self.arrays():
            yield tokens.tolist(), n_bytes

    def texts(self, tokenizer: TextTokenizer) -> Iterator[tuple[str, bytes]]:
        """(name, text) of each document, in order, decoded: the very bytes that were read."""
        for name, tokens, n_bytes in self.arrays():
            data = tokenizer.decode(tokens.tolist())
            if len(data) != n_bytes:
                raise DataError(
                    f"{name} decodes to {len(data)} bytes instead of {n_bytes}",
                    "use the tokenizer that stands beside the packed tokens",
                )
            yield name, data

    def _mapped(self, number: int, tokens: int) -> Tokens:
        path = shard_path(self._directory, number)
        dtype = np.dtype(self.index.dtype).newbyteorder("<")
        if not path.exists() or path.stat().st_size != tokens * dtype.itemsize:
            raise self._damaged(path)
        return np.memmap(path, dtype, "r") if tokens else np.zeros(0, dtype)

    @staticmethod
    def _damaged(path: Path) -> DataError:
        return DataError(f"the packed tokens {path} are missing or damaged", "start the run again")


class TokenDataset:
    """Samples for training: sample i is the window of `seq_len` + 1 tokens from token i * `seq_len` on.

    Neighbours share one token, the last target of one and the first input of the next, so every token
    but the stream's first is a target exactly once; a rest shorter than a window is left over.

    Raises:
        DataError: as `PackedTokens`, and when the stream is shorter than one window.
    """

    def __init__(self, directory: Path, seq_len: int) -> None:
        self.packed = PackedTokens(directory)
        self._seq_len = seq_len
        self._samples = (self.packed.index.tokens - 1) // seq_len
        if self._samples < 1:
            raise DataError(
                f"{self.packed.index.tokens} tokens are fewer than one sample of {seq_len + 1}",
                "give more text, or a smaller seq_len",
            )

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return self._samples

    def batch(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [B] in [0, len) -> int64 [B, seq_len + 1].

        Raises:
            DataError: for an id outside.
        """
        return self.packed.take(np.asarray(sample_ids, np.int64) * self._seq_len, self._seq_len + 1)

    def documents(self) -> Iterator[tuple[list[int], int]]:
        """As `PackedTokens.documents`."""
        return self.packed.documents()
