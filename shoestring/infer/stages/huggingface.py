"""A stage that is a Hugging Face model in a local folder (source: ours).

Nothing is fetched, no code of the folder is run, and weights are safetensors or nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import Field

from shoestring.base.errors import ConfigError
from shoestring.infer.batch import Stage, StageContext, StreamStage
from shoestring.infer.config import StageConfig
from shoestring.infer.hugging import HuggingFaceRagged
from shoestring.infer.stages import hugging_heads as heads
from shoestring.infer.stages.columns import options_of
from shoestring.infer.stages.devices import device_of
from shoestring.infer.stages.text import Codec, TextOptions, TextStream

Task = Literal[
    "auto",
    "text-generation",
    "text-classification",
    "token-classification",
    "feature-extraction",
    "image-classification",
]
_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}
_BY_ENDING = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForImageClassification", "image-classification"),
)
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HuggingFaceOptions(TextOptions):
    """Options of a stage of kind `huggingface`; those of text generation count for that task alone.

    Attributes:
        task: what the model does; `auto`: by its architecture.
        pipeline: one of transformers' pipelines over texts, which then does all, into the column `result`.
        text: the column that is read, for all tasks but text generation (`prompt`) and images.
        image: the column of encoded images, or of pixels [H, W, 3].
        engine: of text generation. `ours`: continuous batching; `transformers`: its `generate` in static
            batches; `auto`: ours where the model's attention allows it.
        chat: a prompt is what a user says, and goes through the tokenizer's chat template.
        dtype: `auto`: fp32 on a CPU, else as stored.
        max_tokens: longer texts are cut, for all tasks but text generation; 0: the model's positions.
        pooling: of feature extraction: the mean over tokens, or the first token's.
        normalise: embeddings get length 1.
        scores: classification gives the probabilities of all labels too, as `scores`.
    """

    task: Task = "auto"
    pipeline: str = ""
    text: str = "text"
    image: str = "bytes"
    engine: Literal["auto", "ours", "transformers"] = "auto"
    chat: bool = False
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    max_tokens: int = Field(default=0, ge=0)
    pooling: Literal["mean", "first"] = "mean"
    normalise: bool = False
    scores: bool = False


def make(config: StageConfig, context: StageContext) -> Stage | StreamStage:
    """The stage; see `shoestring.infer.stages.loading`."""
    options = options_of(HuggingFaceOptions, config)
    path = Path(config.uses)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = device_of(context)
    task = _task(options.task, path)
    model = _model(path, task, options, device)
    if options.pipeline:
        return heads.PipelineStage(_pipeline(path, options, model, device), options.text)
    if task == "image-classification":
        return heads.ImageClasses(model, options.image, options.scores, heads.Look.of(path))
    tokenizer = _tokenizer(path)
    if task == "text-generation":
        return _generation(model, tokenizer, options, context)
    read = heads.Reader(tokenizer, options.text, _longest(model, tokenizer, options.max_tokens), device)
    if task == "text-classification":
        return heads.TextClasses(model, read, options.scores)
    if task == "token-classification":
        return heads.TokenClasses(model, read)
    return heads.Embedding(model, read, options.pooling, options.normalise)


def _task(task: Task, path: Path) -> str:
    if task != "auto":
        return task
    settings = json.loads((path / "config.json").read_bytes())
    for name in settings["architectures"] if "architectures" in settings else []:
        for ending, found in _BY_ENDING:
            if name.endswith(ending):
                return found
    return "feature-extraction"


def _model(path: Path, task: str, options: HuggingFaceOptions, device: torch.device) -> Any:
    """The model, whole: no weight may be made up."""
    dtype: Any = _DTYPES[options.dtype] if options.dtype != "auto" else "auto"
    if options.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    try:
        model, told = getattr(transformers, _CLASSES[task]).from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
        )
    # transformers and safetensors raise what comes up: OSError, ValueError, KeyError, their own.
    except Exception as error:
        raise ConfigError(
            f"transformers cannot load {path} for {task}: {error}",
            "check that the folder is complete and of this task; code inside of it is never run",
        ) from error
    if missing := sorted(told["missing_keys"]):
        raise ConfigError(
            f"{path} is no model for {task}: it has no weights for {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""),
            "set options.task to what it was trained for",
        )
    return model.to(device).eval()


def _tokenizer(path: Path) -> Any:
    if not any(file for pattern in _VOCABULARIES for file in path.glob(pattern)):
        # transformers would make an empty one, to which every word is unknown.
        raise ConfigError(
            f"{path} holds no tokenizer: none of {', '.join(_VOCABULARIES)}",
            "save it there with tokenizer.save_pretrained",
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ConfigError(
            f"{path} holds no tokenizer that transformers can load: {error}",
            "save it there with tokenizer.save_pretrained",
        ) from error


def _pipeline(path: Path, options: HuggingFaceOptions, model: Any, device: torch.device) -> Any:
    try:
        return transformers.pipeline(
            options.pipeline,
            model=model,
            tokenizer=_tokenizer(path),
            device=device,
            trust_remote_code=False,
        )
    except KeyError as error:
        raise ConfigError(f"transformers has no pipeline {options.pipeline!r}", str(error.args[0])) from error


def _generation(
    model: Any, tokenizer: Any, options: HuggingFaceOptions, context: StageContext
) -> Stage | StreamStage:
    codec = _codec(model, tokenizer, options.chat)
    if options.engine != "transformers":
        try:
            return TextStream(HuggingFaceRagged(model), codec, options, context)
        except ConfigError:
            if options.engine == "ours":
                raise
    return heads.StaticGeneration(model, codec, options, context.seed)


def _codec(model: Any, tokenizer: Any, chat: bool) -> Codec:
    def encode(text: str) -> list[int]:
        if not chat:
            ids: list[int] = tokenizer(text)["input_ids"]
            return ids
        said = [{"role": "user", "content": text}]
        written = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        plain: list[int] = tokenizer(written, add_special_tokens=False)["input_ids"]
        return plain

    if chat and not tokenizer.chat_template:
        raise ConfigError("options.chat is set, and the tokenizer has no chat template", "leave chat out")
    ends = model.generation_config.eos_token_id
    stop = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    return Codec(
        encode=encode,
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        stop=frozenset(stop),
    )


def _longest(model: Any, tokenizer: Any, max_tokens: int) -> int:
    """Tokens that a text is cut to."""
    config = model.config.get_text_config()
    positions = heads.told(config, "max_position_embeddings")
    bounds = [bound for bound in (max_tokens, positions, tokenizer.model_max_length) if bound]
    return int(min(bounds)) if bounds else 512
