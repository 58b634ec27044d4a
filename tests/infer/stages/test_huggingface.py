"""Hugging Face folders: each task's numbers are the model's own, and wrong folders are named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import torch
import transformers
from PIL import Image

from shoestring.base.errors import ConfigError
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.hugging import HuggingFaceRagged
from shoestring.infer.stages import load_stage
from shoestring.infer.stages.hugging_heads import StaticGeneration
from shoestring.infer.stages.text import Codec, TextOptions, TextStream

TEXTS = ["the cat", "the big red dogs ran off to see old towns by night and then it sat", "a mat", "night"]
WORDS = sorted(set(" ".join(TEXTS).split()))
KINDS: dict[str, Any] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"num_key_value_heads": 2}),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {"num_key_value_heads": 2, "sliding_window": 4},
    ),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, {}),
}


def tokenizer(folder: Path) -> None:
    """A word-level tokenizer over a few words."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)


def save(folder: Path, kind: Any, config: Any) -> Any:
    torch.manual_seed(1)
    model = kind(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def causal(folder: Path, name: str = "llama") -> Any:
    settings, kind, more = KINDS[name]
    return save(
        folder,
        kind,
        settings(
            vocab_size=len(WORDS) + 4,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            **more,
        ),
    )


def bert(folder: Path, kind: Any, **more: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        **more,
    )
    return save(folder, kind, config)


def stage(folder: Path, **options: Any) -> Any:
    config = StageConfig(uses=str(folder), options=options)
    return load_stage(config, StageContext("it", seed=3))


def texts(*rows: str | None) -> Batch:
    return Batch(pa.table({"text": pa.array(rows, pa.string())}))


def written(made: Any, batch: Batch) -> Answer:
    """The answer to one batch, of a stream or of a plain stage."""
    if not isinstance(made, TextStream):
        answer: Answer = made(batch)
        return answer
    made.take(0, batch)
    for _ in range(1000):
        if through := made.work():
            return through[0][1]
    raise AssertionError("the batch never got through")


def own_texts(folder: Path, tokens: int) -> list[str]:
    """What transformers itself makes of each text alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    made = []
    for text in TEXTS:
        given = words(text, return_tensors="pt")
        out = model.generate(input_ids=given["input_ids"], max_new_tokens=tokens, do_sample=False)
        made.append(words.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
    return made


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_greedy_texts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    causal(tmp_path, name)
    wanted = own_texts(tmp_path, 20)
    made = stage(tmp_path, tokens=20, sequences=3)
    # A window that is shorter than the texts is no attention of ours.
    assert isinstance(made, StaticGeneration if name == "mistral" else TextStream)
    answer = written(made, texts(*TEXTS, None))
    assert answer.columns["generated"].to_pylist()[:4] == wanted
    assert set(answer.errors) == {4} and "missing" in answer.errors[4]
    counts = answer.columns["generated_tokens"].to_pylist()
    assert counts[4] is None and max(counts[:4]) == 20
    plain = stage(tmp_path, tokens=20, engine="transformers")
    assert isinstance(plain, StaticGeneration)
    answer = plain(texts(*TEXTS, None))
    assert answer.columns["generated"].to_pylist()[:4] == wanted and set(answer.errors) == {4}


def test_an_engine_that_does_not_fit_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    causal(tmp_path, "mistral")
    with pytest.raises(ConfigError, match="sliding_window") as caught:
        stage(tmp_path, engine="ours")
    assert "engine" in caught.value.todo


@pytest.mark.parametrize("engine", ["ours", "transformers"])
def test_a_draw_depends_on_the_row_alone(tmp_path: Path, engine: str) -> None:
    causal(tmp_path)
    options: dict[str, Any] = {"tokens": 12, "temperature": 1.0, "top_p": 0.9, "engine": engine}
    together = written(stage(tmp_path, **options), texts(*TEXTS)).columns["generated"].to_pylist()
    other = stage(tmp_path, **options, sequences=1)
    alone = [written(other, texts(text)).columns["generated"][0].as_py() for text in reversed(TEXTS)]
    assert together == alone[::-1]
    seeded = written(stage(tmp_path, **options, seed=4), texts(*TEXTS)).columns["generated"].to_pylist()
    assert seeded != together


@pytest.mark.parametrize(
    "more", [{}, {"engine": "transformers"}, {"engine": "transformers", "temperature": 1.0}]
)
def test_a_row_may_have_a_bound_of_its_own(tmp_path: Path, more: dict[str, Any]) -> None:
    causal(tmp_path)
    batch = Batch(
        pa.table({"text": ["the", "the", "the", "the"], "most": pa.array([3, None, 0, 99], pa.int32())})
    )
    answer = written(stage(tmp_path, tokens=5, tokens_column="most", **more), batch)
    counts = answer.columns["generated_tokens"].to_pylist()
    assert counts[2] == 0 and counts[0] <= 3 and counts[1] == counts[3] <= 5
    for most in (["3", "many"], [3.0, float("inf")]):
        batch = Batch(pa.table({"text": ["the", "the"], "most": most}))
        answer = written(stage(tmp_path, tokens=5, tokens_column="most", **more), batch)
        assert "not a number" in answer.errors[1] and set(answer.errors) == {1}


def test_several_batches_are_under_way_at_a_time(tmp_path: Path) -> None:
    causal(tmp_path)
    made = stage(tmp_path, tokens=20, sequences=4)
    room = made.room
    made.take(7, texts("the cat", "a"))
    made.take(9, texts(None))
    assert made.room == room - 2, "a row that is no text takes no room"
    found: dict[int, Answer] = {}
    for _ in range(100):
        found |= dict(made.work())
        if 9 in found and 7 not in found and 11 not in found and made.room == room - 2:
            made.take(11, texts("night"))
    assert set(found) == {7, 9, 11} and set(found[9].errors) == {0} and made.room == room
    made.close()


def test_a_batch_that_the_tokenizer_fails_on_leaves_nothing_behind(tmp_path: Path) -> None:
    causal(tmp_path)
    model = HuggingFaceRagged(transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval())

    def encode(text: str) -> list[int]:
        if text == "bad":
            raise ValueError("no such word")
        return [5, 6]

    codec = Codec(encode, lambda ids: " ".join(map(str, ids)), frozenset())
    made = TextStream(model, codec, TextOptions(tokens=3), StageContext("it"))
    room = made.room
    with pytest.raises(ValueError, match="no such word"):
        made.take(1, texts("the", "bad"))
    assert made.room == room and made.work() == []
    assert not written(made, texts("the")).errors


def test_a_prompt_that_is_too_long_fails_alone(tmp_path: Path) -> None:
    causal(tmp_path)
    answer = written(stage(tmp_path, tokens=8), texts("the", " ".join(["cat"] * 60), ""))
    assert set(answer.errors) == {1, 2}
    assert "64 positions" in answer.errors[1] and "empty" in answer.errors[2]


def test_classes_are_the_models_own(tmp_path: Path) -> None:
    model = bert(
        tmp_path, transformers.BertForSequenceClassification, num_labels=3, id2label={0: "x", 1: "y", 2: "z"}
    )
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    answer = stage(tmp_path, scores=True)(texts(*TEXTS, None, ""))
    assert set(answer.errors) == {4, 5}
    scores = answer.columns["scores"][:4]
    with torch.no_grad():
        wanted = [model(**words(text, return_tensors="pt")).logits[0].softmax(-1).numpy() for text in TEXTS]
    assert np.allclose(scores, wanted, atol=1e-4)
    assert answer.columns["label"].to_pylist()[:4] == ["xyz"[row.argmax()] for row in scores]


def test_embeddings_do_not_see_padding(tmp_path: Path) -> None:
    model = bert(tmp_path, transformers.BertModel)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden = [model(**words(text, return_tensors="pt")).last_hidden_state[0].numpy() for text in TEXTS]
    found = stage(tmp_path)(texts(*TEXTS)).columns["embedding"]
    assert np.allclose(found, [one.mean(0) for one in hidden], atol=1e-4)
    first = stage(tmp_path, pooling="first", normalise=True)(texts(*TEXTS)).columns["embedding"]
    wanted = [one[0] / np.linalg.norm(one[0]) for one in hidden]
    assert np.allclose(first, wanted, atol=1e-4)
    long = stage(tmp_path)(texts(" ".join(["cat"] * 100)))
    assert not long.errors, "a text beyond the model's positions is cut"


def test_entities_have_their_place_in_the_text(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-X", 2: "I-X"}
    model = bert(tmp_path, transformers.BertForTokenClassification, num_labels=3, id2label=names)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    answer = stage(tmp_path)(texts(*TEXTS, None))
    assert set(answer.errors) == {4}
    some = 0
    for text, found in zip(TEXTS, answer.columns["entities"].to_pylist(), strict=False):
        with torch.no_grad():
            labels = model(**words(text, return_tensors="pt")).logits[0].argmax(-1).tolist()
        covered = {
            word
            for word in range(len(labels))
            for one in found
            if one["start"] <= len(" ".join([*text.split()[:word], ""])) < one["end"]
        }
        assert covered == {word for word, label in enumerate(labels) if label}
        assert all(one["label"] == "X" and 0 < one["score"] <= 1 for one in found)
        some += len(found)
    assert some


def test_images_are_classified_from_files_and_from_pixels(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=16,
        patch_size=8, num_labels=5,
    )  # fmt: skip
    model = save(tmp_path, transformers.ViTForImageClassification, config)
    said = {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    files = []
    for one in pixels:
        out = io.BytesIO()
        Image.fromarray(one).save(out, "PNG")
        files.append(out.getvalue())
    ready = (pixels / 255 - said["image_mean"]) / said["image_std"]
    with torch.no_grad():
        logits = model(pixel_values=torch.from_numpy(ready).float().permute(0, 3, 1, 2)).logits
    made = stage(tmp_path, scores=True)
    answer = made(Batch(pa.table({"bytes": [*files, b"no image"]})))
    assert set(answer.errors) == {3}
    found = answer.columns["scores"][:3]
    assert np.allclose(found, logits.softmax(-1).numpy(), atol=1e-4)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    answer = stage(tmp_path, scores=True, image="pixels")(Batch(pa.table({"pixels": tensor})))
    assert np.allclose(answer.columns["scores"], logits.softmax(-1).numpy(), atol=1e-4)


def test_a_pipeline_gives_what_it_gives(tmp_path: Path) -> None:
    bert(tmp_path, transformers.BertForSequenceClassification, num_labels=2)
    answer = stage(tmp_path, pipeline="text-classification")(texts(*TEXTS, None))
    assert set(answer.errors) == {4}
    assert all(set(one) == {"label", "score"} for one in answer.columns["result"][:4])
    assert pa.array(answer.columns["result"]).type.field("score").type == pa.float64()
    with pytest.raises(ConfigError, match="no pipeline 'nonsense'"):
        stage(tmp_path, pipeline="nonsense")


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    bert(base, transformers.BertModel)
    with pytest.raises(ConfigError, match="no weights for classifier"):
        stage(base, task="text-classification")
    with pytest.raises(ConfigError, match="cannot load .* for image-classification"):
        stage(base, task="image-classification")
    with pytest.raises(ConfigError, match="taks"):
        stage(base, taks="text-classification")
    with pytest.raises(ConfigError, match="chat template"):
        causal(tmp_path / "chat")
        stage(tmp_path / "chat", chat=True)
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        stage(base)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot load"):
        stage(base)


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    causal(tmp_path)
    trap = tmp_path / "trap"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Model: ...\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.Model"}}
    config["auto_map"]["AutoModelForCausalLM"] = "modeling_evil.Model"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="cannot load"):
        stage(tmp_path)
    assert not trap.exists()
