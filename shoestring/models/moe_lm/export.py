"""The model in the published BailingMoeForCausalLM layout: safetensors plus a config.json.

Layout (names and shapes) as in the released Ling configurations; queries, keys and values are one matrix,
heads in that order; the head is exported as trained and `norm_head` tells the reader to normalise it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring.base.errors import CheckpointError
from shoestring.models.moe_lm.config import MODEL_TYPE, MoeConfig
from shoestring.models.moe_lm.model import MoeLM

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"


def hf_config(config: MoeConfig) -> dict[str, Any]:
    """`config` under the published key names, ready for config.json."""
    return {
        "architectures": ["BailingMoeForCausalLM"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.expert_width,
        "moe_intermediate_size": config.expert_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "num_experts": config.experts,
        "num_experts_per_tok": config.top_k,
        "num_shared_experts": config.shared_experts,
        "first_k_dense_replace": 0,
        "norm_topk_prob": True,
        "norm_head": config.norm_head,
        "norm_softmax": False,
        "use_bias": False,
        "use_qkv_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": False,
        "initializer_range": config.init_std,
        "torch_dtype": "float32",
    }


def config_from_hf(published: Mapping[str, Any], **settings: Any) -> MoeConfig:
    """The shape in a published config.json as a `MoeConfig`; `settings` adds what that file does not hold.

    Raises:
        CheckpointError: if a key is missing.
    """
    names = {
        "vocab_size": "vocab_size", "hidden": "hidden_size", "layers": "num_hidden_layers",
        "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
        "experts": "num_experts", "top_k": "num_experts_per_tok", "shared_experts": "num_shared_experts",
        "expert_width": "moe_intermediate_size", "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta",
        "max_positions": "max_position_embeddings", "norm_head": "norm_head",
    }  # fmt: skip
    missing = sorted(key for key in names.values() if key not in published)
    if missing:
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}", "use the model's complete config.json"
        )
    return MoeConfig(**{ours: published[theirs] for ours, theirs in names.items()}, **settings)


def export_state_dict(model: MoeLM) -> dict[str, Tensor]:
    """All parameters under their published names, as contiguous copies."""
    out: dict[str, Tensor] = {}
    for name, parts in _layout(model.config).items():
        tensors = [_locate(model, part) for part in parts]
        out[name] = torch.cat([tensor.detach() for tensor in tensors]).clone().contiguous()
    return out


@torch.no_grad()
def import_state_dict(model: MoeLM, state: Mapping[str, Tensor]) -> None:
    """Copy published-layout tensors into `model`.

    Raises:
        CheckpointError: if names or shapes differ; nothing is copied then.
    """
    layout = _layout(model.config)
    missing, extra = sorted(set(layout) - set(state)), sorted(set(state) - set(layout))
    if missing or extra:
        raise CheckpointError(
            f"tensors do not match: {len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}",
            "load it with the configuration it was saved with",
        )
    plan: list[tuple[Tensor, Tensor]] = []
    for name, parts in layout.items():
        targets = [_locate(model, part) for part in parts]
        rows = [target.shape[0] for target in targets]
        expected = (sum(rows), *targets[0].shape[1:])
        if tuple(state[name].shape) != expected:
            raise CheckpointError(
                f"{name} has shape {tuple(state[name].shape)}, expected {expected}",
                "load it with the configuration it was saved with",
            )
        plan.extend(zip(targets, state[name].split(rows), strict=True))
    for target, source in plan:
        target.copy_(source)


def save_pretrained(model: MoeLM, directory: Path) -> None:
    """Write model.safetensors and config.json into `directory` (made if missing)."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(export_state_dict(model), directory / _WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(hf_config(model.config), indent=2, sort_keys=True)
    (directory / _CONFIG).write_text(text + "\n", encoding="utf-8")


def load_pretrained(directory: Path, **settings: Any) -> MoeLM:
    """Read what `save_pretrained` wrote; `settings` are `MoeConfig` fields that config.json does not hold.

    Raises:
        CheckpointError: if a file is missing or does not match.
    """
    for name in (_WEIGHTS, _CONFIG):
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} holds no {name}", "give the directory of an exported model")
    published = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    model = MoeLM(config_from_hf(published, **settings), seed=None)
    import_state_dict(model, load_file(directory / _WEIGHTS))
    return model


def _locate(model: MoeLM, path: tuple[str, int | None, int | None]) -> Tensor:
    """A parameter, or the slice [i] or [i, j] of one; slices share memory with it."""
    name, first, second = path
    tensor: Tensor = model.get_parameter(name)
    if first is not None:
        tensor = tensor[first]
    return tensor if second is None else tensor[second]


def _layout(config: MoeConfig) -> dict[str, list[tuple[str, int | None, int | None]]]:
    """Published name -> the parts of ours that it joins by rows."""
    out: dict[str, list[tuple[str, int | None, int | None]]] = {
        "model.word_embeddings.weight": [("embed", None, None)],
        "model.norm.weight": [("final_norm.weight", None, None)],
        "lm_head.weight": [("head.weight", None, None)],
    }
    for index in range(config.layers):
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        out[f"{theirs}.input_layernorm.weight"] = [(f"{ours}.attention_norm.weight", None, None)]
        out[f"{theirs}.post_attention_layernorm.weight"] = [(f"{ours}.moe_norm.weight", None, None)]
        qkv = [(f"{ours}.attention.{part}", None, None) for part in ("query", "key", "value")]
        out[f"{theirs}.attention.query_key_value.weight"] = list(qkv)
        out[f"{theirs}.attention.dense.weight"] = [(f"{ours}.attention.dense", None, None)]
        out[f"{theirs}.mlp.gate.weight"] = [(f"{ours}.moe.router.weight", None, None)]
        for expert in range(config.experts):
            prefix = f"{theirs}.mlp.experts.{expert}"
            out[f"{prefix}.gate_proj.weight"] = [(f"{ours}.moe.gate_up", expert, 0)]
            out[f"{prefix}.up_proj.weight"] = [(f"{ours}.moe.gate_up", expert, 1)]
            out[f"{prefix}.down_proj.weight"] = [(f"{ours}.moe.down", expert, None)]
        if config.shared_experts:
            prefix = f"{theirs}.mlp.shared_experts"
            out[f"{prefix}.gate_proj.weight"] = [(f"{ours}.moe.shared_gate_up", 0, None)]
            out[f"{prefix}.up_proj.weight"] = [(f"{ours}.moe.shared_gate_up", 1, None)]
            out[f"{prefix}.down_proj.weight"] = [(f"{ours}.moe.shared_down", None, None)]
    return out
