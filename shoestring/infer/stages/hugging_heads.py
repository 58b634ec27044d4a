"""What Hugging Face models of each task make of a batch (source: ours).

Shapes: B rows, T tokens, C labels, h width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shoestring.base.errors import ConfigError
from shoestring.infer.batch import Answer, Batch
from shoestring.infer.stages.columns import Array, column_of, normal_pixels, stacked, texts_of
from shoestring.infer.stages.text import Codec, TextOptions, bounds_of, seed_of, text_answer

_PADDED_TOKENS = 8192  # of one forward pass, padding included
_OFFSETS, _SPECIAL = "offset_mapping", "special_tokens_mask"
Places = tuple[list[tuple[int, int]], list[int]]
"""Of a text's tokens: first and last character, and whether a token is none of the text's own."""


class Reader:
    """Texts of a batch as token ids, in passes of similar length.

    Args:
        tokenizer: of transformers.
        column: of texts.
        longest: tokens; what is longer is cut.
        device: of the model.
    """

    def __init__(self, tokenizer: Any, column: str, longest: int, device: torch.device) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        self.tokenizer, self._column, self._longest, self._device = tokenizer, column, longest, device

    def passes(
        self, batch: Batch, errors: dict[int, str], places: bool = False
    ) -> Iterator[tuple[list[int], Any, list[Places]]]:
        """(rows, inputs of the model [B, T], where each row's tokens are); rows without a text are noted in
        `errors`.

        Args:
            places: whether they are asked for; there are none else.
        """
        texts, wrong = texts_of(batch, self._column, "options.text")
        errors |= wrong
        rows = [row for row in range(len(texts)) if row not in wrong]
        if not rows:
            return
        encoded = self.tokenizer(
            [texts[row] for row in rows],
            truncation=True,
            max_length=self._longest,
            return_offsets_mapping=places,
            return_special_tokens_mask=places,
        )
        found = list(zip(encoded.pop(_OFFSETS), encoded.pop(_SPECIAL), strict=True)) if places else []
        lengths = [len(ids) for ids in encoded["input_ids"]]
        for place, length in enumerate(lengths):
            if not length:
                errors[rows[place]] = f"{self._column} has no token"
        order = sorted((place for place, length in enumerate(lengths) if length), key=lengths.__getitem__)
        for chosen in _by_tokens(order, lengths):
            part = {name: [values[place] for place in chosen] for name, values in encoded.items()}
            padded = self.tokenizer.pad(part, return_tensors="pt")
            yield (
                [rows[place] for place in chosen],
                padded.to(self._device),
                [found[place] for place in chosen] if places else [],
            )


class TextClasses:
    """`label` and `score` of each text."""

    def __init__(self, model: Any, read: Reader, scores: bool) -> None:
        self._model, self._read, self._scores = model, read, scores

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Answer:
        """The likeliest label and its probability; all of them with `scores`."""
        errors: dict[int, str] = {}
        logits = np.zeros((len(batch), self._model.config.num_labels), np.float32)
        for rows, inputs, _ in self._read.passes(batch, errors):
            logits[rows] = self._model(**inputs).logits.float().cpu().numpy()
        return Answer(_classes(logits, self._model.config, self._scores), errors=errors)


class TokenClasses:
    """`entities` of each text: start, end (characters), label, score; neighbours of one label are one."""

    def __init__(self, model: Any, read: Reader) -> None:
        if not read.tokenizer.is_fast:
            raise ConfigError(
                "the tokenizer cannot tell where in the text a token is",
                "save a tokenizer.json beside the model",
            )
        self._model, self._read = model, read

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Answer:
        """Spans of text with their labels; label `O` is none."""
        errors: dict[int, str] = {}
        found: list[list[dict[str, Any]]] = [[] for _ in range(len(batch))]
        for rows, inputs, places in self._read.passes(batch, errors, places=True):
            chance = self._model(**inputs).logits.float().softmax(-1)
            score_BT, label_BT = (one.cpu().numpy() for one in chance.max(-1))
            for place, row in enumerate(rows):
                length = len(places[place][0])
                left = label_BT.shape[1] - length if self._read.tokenizer.padding_side == "left" else 0
                its = slice(left, left + length)
                found[row] = self._entities(label_BT[place, its], score_BT[place, its], places[place])
        kind = pa.list_(
            pa.struct(
                [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("score", pa.float32())]
            )
        )
        return Answer({"entities": pa.array(found, kind)}, errors=errors)

    def _entities(self, labels: Array, scores: Array, places: Places) -> list[dict[str, Any]]:
        names = self._model.config.id2label
        out: list[dict[str, Any]] = []
        last = -1
        for place, ((start, end), special) in enumerate(zip(*places, strict=True)):
            name = names[int(labels[place])]
            if special or name == "O":
                continue
            begins, label = name.startswith("B-"), name.removeprefix("B-").removeprefix("I-")
            if out and last == place - 1 and out[-1]["label"] == label and not begins:
                out[-1]["end"] = end
                out[-1]["score"] = min(out[-1]["score"], float(scores[place]))
            else:
                out.append({"start": start, "end": end, "label": label, "score": float(scores[place])})
            last = place
        return out


class Embedding:
    """`embedding` of each text, [h]."""

    def __init__(self, model: Any, read: Reader, pooling: str, normalise: bool) -> None:
        self._model, self._read, self._pooling, self._normalise = model, read, pooling, normalise

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Answer:
        """The mean of the last hidden states over a text's tokens, or the first one."""
        errors: dict[int, str] = {}
        out = np.zeros((len(batch), self._model.config.hidden_size), np.float32)
        for rows, inputs, _ in self._read.passes(batch, errors):
            hidden_BTh: Tensor = self._model(**inputs).last_hidden_state.float()
            mask_BT1 = inputs["attention_mask"][..., None].float()
            if self._pooling == "mean":
                pooled = (hidden_BTh * mask_BT1).sum(1) / mask_BT1.sum(1)
            else:
                first = inputs["attention_mask"].argmax(1)  # padding may be on the left
                pooled = hidden_BTh[torch.arange(len(rows), device=first.device), first]
            if self._normalise:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
            out[rows] = pooled.cpu().numpy()
        return Answer({"embedding": out}, errors=errors)


@dataclass(frozen=True)
class Look:
    """How an image model wants its pixels: from preprocessor_config.json."""

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, path: Path) -> Look:
        """Read it; the usual halves where the folder says nothing."""
        file = path / "preprocessor_config.json"
        said = json.loads(file.read_bytes()) if file.is_file() else {}
        size = (
            said["crop_size" if said.get("do_center_crop") and "crop_size" in said else "size"]
            if ("size" in said)
            else None
        )
        return cls(
            size=_size(size),
            mean=tuple(said["image_mean"]) if "image_mean" in said else (0.5, 0.5, 0.5),
            std=tuple(said["image_std"]) if "image_std" in said else (0.5, 0.5, 0.5),
        )


class ImageClasses:
    """`label` and `score` of each image, from encoded files (needs Pillow) or pixels [H, W, 3] of 0 to 255.

    Args:
        model: of transformers.
        column: of images.
        scores: all probabilities too.
        look: what its pixels should be like. Images are resized to its size, without its cropping.
    """

    def __init__(self, model: Any, column: str, scores: bool, look: Look) -> None:
        self._model, self._column, self._scores, self._look = model, column, scores, look
        self._decode: Callable[[Batch], Answer] | None = None

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Answer:
        """The likeliest label and its probability; all of them with `scores`."""
        values = column_of(batch, self._column, "options.image")
        encoded = values.dtype == object and any(isinstance(value, bytes) for value in values)
        pixels, errors = self._decoded(batch) if encoded else stacked(values, (None, None, 3), self._column)
        good = [row for row in range(len(batch)) if row not in errors]
        logits = np.zeros((len(batch), self._model.config.num_labels), np.float32)
        if good:
            scaled = normal_pixels(pixels[good], self._look.mean, self._look.std)
            ready = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
            ready = ready.to(self._model.device, self._model.dtype)
            logits[good] = self._model(pixel_values=ready).logits.float().cpu().numpy()
        return Answer(_classes(logits, self._model.config, self._scores), errors=errors)

    def _decoded(self, batch: Batch) -> tuple[Array, dict[int, str]]:
        if self._decode is None:
            # Only here: whoever brings pixels needs no Pillow.
            from shoestring.infer.stages.images import ImagesOptions, ImagesStage

            side = told(self._model.config, "image_size")
            size = self._look.size or _size(side) or (224, 224)
            self._decode = ImagesStage(ImagesOptions(column=self._column, size=size))
        answer = self._decode(batch)
        pixels: Array = answer.columns["pixels"]
        return pixels, dict(answer.errors)


class PipelineStage:
    """`result` of each text: what a pipeline of transformers gives for it."""

    def __init__(self, pipeline: Any, column: str) -> None:
        self._pipeline, self._column = pipeline, column

    def __call__(self, batch: Batch) -> Answer:
        """One entry a row: structs, or lists of them."""
        texts, errors = texts_of(batch, self._column, "options.text")
        good = [row for row in range(len(texts)) if row not in errors]
        found: list[Any] = [None] * len(texts)
        if good:
            given = self._pipeline([texts[row] for row in good], batch_size=len(good))
            for row, value in zip(good, given, strict=True):
                found[row] = _plain(value)
        return Answer({"result": found}, errors=errors)


class StaticGeneration:
    """Text generation by transformers itself, for models whose attention ours is not."""

    def __init__(self, model: Any, codec: Codec, options: TextOptions, seed: int) -> None:
        self._model, self._codec, self._options = model, codec, options
        self._seed = seed if options.seed is None else options.seed

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Answer:
        """New texts of all rows."""
        options = self._options
        texts, errors = texts_of(batch, options.prompt, "options.prompt")
        bounds, wrong = bounds_of(options, batch)
        errors |= wrong
        ids = [self._codec.encode(text) for text in texts]
        errors |= {row: "the prompt is empty" for row, one in enumerate(ids) if not one and row not in errors}
        made: dict[int, list[int]] = {
            row: [] for row in range(len(texts)) if row not in errors and not bounds[row]
        }
        good = [row for row in range(len(texts)) if row not in errors and bounds[row]]
        # Drawn one by one, so that a row's draw depends on its seed and prompt alone.
        groups = [[row] for row in good] if options.temperature > 0 else [good] if good else []
        for rows in groups:
            most = max(bounds[row] for row in rows)
            written = self._generate([ids[row] for row in rows], texts[rows[0]], most)
            made |= {row: tokens[: bounds[row]] for row, tokens in zip(rows, written, strict=True)}
        return text_answer(options, self._codec, made, errors, len(texts))

    def _generate(self, prompts: list[list[int]], text: str, most: int) -> list[list[int]]:
        options = self._options
        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1
        drawn = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
        torch.manual_seed(seed_of(self._seed, text) >> 1)
        out = self._model.generate(
            ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            max_new_tokens=most,
            eos_token_id=sorted(self._codec.stop) or None,
            pad_token_id=0,
            **(drawn if options.temperature > 0 else {"do_sample": False}),
        )
        return [self._until_stop(row) for row in out[:, longest:].tolist()]

    def _until_stop(self, tokens: list[int]) -> list[int]:
        for place, token in enumerate(tokens):
            if token in self._codec.stop:
                return tokens[:place]
        return tokens


def told(model_config: Any, name: str) -> Any:
    """What a model's configuration says; None: nothing."""
    return getattr(model_config, name) if hasattr(model_config, name) else None


def _classes(logits_BC: Array, config: Any, scores: bool) -> dict[str, Any]:
    """Columns of a classification; a model of one label gives its number as it is."""
    if logits_BC.shape[1] == 1:
        return {"score": logits_BC[:, 0]}
    logits = torch.from_numpy(logits_BC)
    several = told(config, "problem_type") == "multi_label_classification"
    chance = (logits.sigmoid() if several else logits.softmax(-1)).numpy()
    best = chance.argmax(-1)
    columns = {
        "label": pa.array([config.id2label[int(number)] for number in best], pa.string()),
        "score": chance[np.arange(len(best)), best],
    }
    return columns | ({"scores": chance} if scores else {})


def _by_tokens(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Rows, by length, in passes of at most `_PADDED_TOKENS` with their padding."""
    part: list[int] = []
    for place in order:
        if part and (len(part) + 1) * lengths[place] > _PADDED_TOKENS:
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def _size(said: Any) -> tuple[int, int] | None:
    if isinstance(said, int):
        return said, said
    if isinstance(said, list | tuple) and len(said) == 2:
        return int(said[0]), int(said[1])
    if isinstance(said, dict) and {"height", "width"} <= said.keys():
        return int(said["height"]), int(said["width"])
    if isinstance(said, dict) and "shortest_edge" in said:
        return int(said["shortest_edge"]), int(said["shortest_edge"])
    return None


def _plain(value: Any) -> Any:
    """Without NumPy's and torch's own numbers."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    return value
