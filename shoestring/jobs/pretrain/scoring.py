"""What a finished run is worth: bits per byte beside xz and an n-gram model, and a sample of its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shoestring.base.clock import SystemClock
from shoestring.base.record import RunRecord
from shoestring.data.tokenizer import TextTokenizer
from shoestring.data.tokens import PackedTokens
from shoestring.evaluate.bits import bits_per_byte
from shoestring.evaluate.compress import xz_sizes
from shoestring.evaluate.ngram import NgramConfig, ngram_score
from shoestring.infer.decode import generate
from shoestring.infer.trained import newest_model
from shoestring.jobs.pretrain.config import Ready, ready_of
from shoestring.models.moe_lm.model import MoeLM
from shoestring.train.runs import View

MEASURE = "bits per byte of the held-out files"
SAY_EVERY_S = 2.0


def score_run(run_dir: Path, record: RunRecord, view: View) -> dict[str, Any]:
    """Score the newest checkpoint and, where the settings say so, the baselines; write a sample.

    Raises:
        CheckpointError: there is no intact checkpoint.
        DataError: the packed text is gone or damaged.
    """
    ready = ready_of(run_dir)
    result = score_model(run_dir, view)
    found = {"model": result["bits_per_byte"]}
    if ready.config.evaluate.baselines:
        found |= _baselines(ready, view)
    for name, value in found.items():
        record.append(
            "evaluation", name=name, value=value, measure=MEASURE, heldout_bytes=result["heldout_bytes"]
        )
        view.say(f"  {value:.3f} bits per byte   {name}")
    settings = ready.config.evaluate
    sample = write_text(
        run_dir, settings.sample_prompt, settings.sample_tokens, temperature=0.8, top_p=0.95, seed=0
    )
    view.say(f"a sample after {settings.sample_prompt!r}:\n{sample}")
    return result | {"sample": sample}


def score_model(run_dir: Path, view: View) -> dict[str, Any]:
    """Bits per byte of the newest checkpoint over the held-out files, each alone from its start."""
    ready = ready_of(run_dir)
    settings = ready.config.evaluate
    model, step = load_model(run_dir, ready)
    heldout = PackedTokens(Path(ready.heldout_dir))
    chosen = chosen_documents(heldout, settings.max_bytes)
    documents = [item for number, item in enumerate(heldout.documents()) if number in chosen]
    clock = SystemClock()
    began_s = said_s = clock.now()

    def show(done: int, total: int) -> None:
        nonlocal said_s
        if clock.now() - said_s >= SAY_EVERY_S:
            said_s = clock.now()
            view.say(f"scoring: {done} of {total} windows")

    score = bits_per_byte(
        model,
        documents,
        settings.window,
        settings.stride,
        settings.batch_tokens,
        next(model.parameters()).device,
        show,
    )
    return {
        "bits_per_byte": score.value,
        "step": step,
        "heldout_files_scored": len(documents),
        "heldout_bytes": score.n_bytes,
        "heldout_tokens": score.tokens,
        "heldout_files_left_out": heldout.index.documents - len(chosen),
        "scored_in_s": round(clock.now() - began_s, 3),
    }


def load_model(run_dir: Path, ready: Ready) -> tuple[MoeLM, int]:
    """The model of a run's newest intact checkpoint, and its step.

    Raises:
        CheckpointError: there is none.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return newest_model(run_dir, ready.config.model, device)


def write_text(run_dir: Path, prompt: str, tokens: int, temperature: float, top_p: float, seed: int) -> str:
    """Let the newest checkpoint go on with a text; the prompt is part of what is returned.

    Raises:
        CheckpointError: there is no intact checkpoint.
        ConfigError: prompt and tokens are longer than the model's positions.
    """
    ready = ready_of(run_dir)
    model, _ = load_model(run_dir, ready)
    tokenizer = TextTokenizer.load(Path(ready.tokenizer))
    start = [tokenizer.start_id, *tokenizer.encode(prompt.encode())]
    device = next(model.parameters()).device
    with torch.no_grad():
        ids = list(generate(model, start, tokens, temperature, top_p, seed, tokenizer.end_id, device))
    return prompt + tokenizer.decode(ids).decode(errors="replace")


def chosen_documents(heldout: PackedTokens, max_bytes: int) -> frozenset[int]:
    """Numbers of the held-out documents that are scored, by the model and by every baseline: in order, as
    many as fit into `max_bytes` of text, and one at the least."""
    chosen: set[int] = set()
    size = 0
    for number, (_, n_bytes) in enumerate(heldout.documents()):
        if not chosen or size + n_bytes <= max_bytes:
            size += n_bytes
            chosen.add(number)
    return frozenset(chosen)


def _baselines(ready: Ready, view: View) -> dict[str, float]:
    """xz and the n-gram model on the same files, computed now."""
    heldout, train = PackedTokens(Path(ready.heldout_dir)), PackedTokens(Path(ready.train_dir))
    chosen = chosen_documents(heldout, ready.config.evaluate.max_bytes)
    texts = enumerate(heldout.texts(TextTokenizer.load(Path(ready.tokenizer))))
    view.say(f"baselines: xz -9e of the same {len(chosen)} files")
    xz = xz_sizes(item for number, item in texts if number in chosen)
    view.say("baselines: an n-gram model of the same tokens")
    ngram = ngram_score(train, heldout, NgramConfig(), chosen)
    return {
        "xz -9e, each file alone": xz.per_file_bits_per_byte,
        "xz -9e, all files in one archive": xz.archive_bits_per_byte,
        "n-gram (Kneser-Ney and memory)": ngram.bits_per_byte,
    }
