"""The exported layout is the published one, and comes back bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shoestring.base.errors import CheckpointError
from shoestring.models.moe_lm.config import LITE, PLUS, TINY, MoeConfig
from shoestring.models.moe_lm.export import (
    config_from_hf,
    export_state_dict,
    hf_config,
    import_state_dict,
    load_pretrained,
    save_pretrained,
)
from shoestring.models.moe_lm.model import Block, MoeLM


def test_round_trip_keeps_every_bit_and_the_loss(tmp_path: Path) -> None:
    model = MoeLM(TINY, seed=1)
    save_pretrained(model, tmp_path / "out")
    again = load_pretrained(tmp_path / "out", compute_dtype="fp32")
    for (name, ours), (_, theirs) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    tokens = torch.randint(0, TINY.vocab_size, (2, 33))
    assert torch.equal(model.token_nll(tokens), again.token_nll(tokens))


def test_names_and_shapes_follow_the_published_layout(tmp_path: Path) -> None:
    save_pretrained(MoeLM(TINY, seed=1), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    h, m = TINY.hidden, TINY.expert_width
    layer = {
        "input_layernorm.weight": (h,),
        "post_attention_layernorm.weight": (h,),
        "attention.query_key_value.weight": (TINY.qkv_width, h),
        "attention.dense.weight": (h, TINY.heads * TINY.head_dim),
        "mlp.gate.weight": (TINY.experts, h),
        "mlp.shared_experts.gate_proj.weight": (TINY.shared_width, h),
        "mlp.shared_experts.up_proj.weight": (TINY.shared_width, h),
        "mlp.shared_experts.down_proj.weight": (h, TINY.shared_width),
    }
    for expert in range(TINY.experts):
        layer |= {
            f"mlp.experts.{expert}.gate_proj.weight": (m, h),
            f"mlp.experts.{expert}.up_proj.weight": (m, h),
            f"mlp.experts.{expert}.down_proj.weight": (h, m),
        }
    wanted = {f"model.layers.{i}.{name}": shape for i in range(TINY.layers) for name, shape in layer.items()}
    wanted |= {
        "model.word_embeddings.weight": (TINY.vocab_size, h),
        "model.norm.weight": (h,),
        "lm_head.weight": (TINY.vocab_size, h),
    }
    assert shapes == wanted
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BailingMoeForCausalLM"]
    assert config["norm_head"] is True


@pytest.mark.parametrize("config", [LITE, PLUS], ids=["lite", "plus"])
def test_published_configurations_survive_the_translation(config: MoeConfig) -> None:
    assert config_from_hf(hf_config(config)) == config


def test_queries_keys_and_values_are_joined_in_that_order() -> None:
    model = MoeLM(TINY, seed=1)
    joined = export_state_dict(model)["model.layers.0.attention.query_key_value.weight"]
    block = model.layers[0]
    assert isinstance(block, Block)
    attention = block.attention
    assert torch.equal(joined, torch.cat((attention.query, attention.key, attention.value)))


def test_a_wrong_file_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = MoeLM(TINY, seed=1)
    before = export_state_dict(model)
    other = export_state_dict(MoeLM(TINY, seed=2))
    lacking = {name: tensor for name, tensor in other.items() if "gate" not in name}
    with pytest.raises(CheckpointError, match="missing"):
        import_state_dict(model, lacking)
    misshapen = other | {"lm_head.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape"):
        import_state_dict(model, misshapen)
    assert all(torch.equal(tensor, before[name]) for name, tensor in export_state_dict(model).items())
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="lacks hidden_size"):
        config_from_hf({key: value for key, value in hf_config(TINY).items() if key != "hidden_size"})
