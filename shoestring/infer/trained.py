"""A language model of ours: from a run's newest checkpoint, or an exported folder (source: ours)."""

from __future__ import annotations

from pathlib import Path

import torch

from shoestring.base.config import parse_config
from shoestring.base.errors import CheckpointError
from shoestring.data.tokenizer import TextTokenizer
from shoestring.fleet.checkpoints import DiskKeeper
from shoestring.fleet.rundirs import ABOUT
from shoestring.infer.prepared import PREPARED, read_prepared
from shoestring.models.moe_lm.config import ComputeDtype, MoeConfig
from shoestring.models.moe_lm.export import load_pretrained
from shoestring.models.moe_lm.model import MoeLM
from shoestring.parallel import tensorfiles


def text_model(path: Path, device: torch.device, dtype: ComputeDtype | None) -> tuple[MoeLM, TextTokenizer]:
    """The model in evaluation mode, on its device, and its tokenizer.

    Args:
        dtype: of activations; None: a run's own; for an exported folder fp32 on a CPU, else bf16.

    Raises:
        ConfigError: it is no run of a language model, or its tokenizer is gone.
        CheckpointError: there is no intact checkpoint, or the folder is incomplete.
    """
    if not (path / ABOUT).is_file():
        kind: ComputeDtype = "fp32" if device.type == "cpu" else "bf16"
        model = load_pretrained(path, compute_dtype=dtype or kind)
        return model.to(device).eval(), TextTokenizer.load(path / "tokenizer.json")
    prepared = read_prepared(path)
    config = parse_config(MoeConfig, prepared.settings["model"], str(path / PREPARED))
    if dtype is not None:
        config = config.model_copy(update={"compute_dtype": dtype})
    model, _ = newest_model(path, config, device)
    return model, TextTokenizer.load(Path(prepared.tokenizer))


def newest_model(run_dir: Path, config: MoeConfig, device: torch.device) -> tuple[MoeLM, int]:
    """The model of a run's newest intact checkpoint, in evaluation mode, and its step.

    Raises:
        CheckpointError: there is none.
    """
    found = DiskKeeper(run_dir / "checkpoints", keep=1).newest()
    if found.manifest is None:
        why = f" ({found.damaged[0][0]}: {found.damaged[0][1]})" if found.damaged else ""
        raise CheckpointError(
            f"the run {run_dir.name} has no intact checkpoint{why}",
            f"go on with it: shoestring resume {run_dir.name}",
        )
    model = MoeLM(config, seed=None).to(device)
    tensorfiles.read(
        {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, Path(found.path)
    )
    return model.eval(), found.manifest.step
