"""One training step against Hugging Face transformers' own mixture of experts of the same shape.

Both sides take the same tokens through the same shape with the same weights (copied, and the losses
compared), the same AdamW, on the same threads, each in a process of its own, in turns. transformers runs at
the best of its own settings, which are tried first: experts by grouped matrix products or by its eager loop,
attention fused or eager, weights in bf16 or fp32 masters under autocast. Ours computes in bf16 with fp32
masters, or everything is fp32 if bf16 is the slower type on this machine.

Memory is the peak resident size of the process, libraries included.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from time import perf_counter
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.common import ROOT, finish, table
from shoestring.base.host import keep_freed_memory
from shoestring.models.moe_lm.config import MoeConfig
from shoestring.models.moe_lm.model import Block, MoeLM
from shoestring.models.precision import matmul_rates, quickest_dtype

SHAPE = MoeConfig(
    vocab_size=8192, layers=6, hidden=384, heads=6, kv_heads=2, head_dim=64, experts=16, top_k=2,
    shared_experts=1, expert_width=256, norm_head=False, init="fan_in", max_positions=2048,
)  # fmt: skip
BATCH, LENGTH = 8, 512
LOSS_TOLERANCE = 0.02
THEIRS = [
    ("grouped_mm", "sdpa", "weights"),
    ("grouped_mm", "eager", "weights"),
    ("eager", "sdpa", "weights"),
    ("batched_mm", "sdpa", "weights"),
    ("grouped_mm", "sdpa", "autocast"),
    ("eager", "sdpa", "autocast"),
]


def main() -> None:
    """Measure both sides in turns and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements, below 50 s")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(_child(json.loads(args.child))))
        return
    _compare(args.quick)


def _compare(quick: bool) -> None:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    rates = matmul_rates(torch.device("cpu"))
    dtype = quickest_dtype(torch.device("cpu"))
    choices = [choice for choice in THEIRS if dtype == "bf16" or choice[2] == "weights"]
    common = {"dtype": dtype, "threads": threads}
    tries = {"choices": choices[:1], "steps": 1} if quick else {"choices": choices, "steps": 3}
    tried: dict[str, Any] = {}
    for choice in tries["choices"]:
        # Each in a process of its own: a setting that runs out of memory must not end the others.
        tried |= _try({"side": "trial", "choices": [choice], "steps": tries["steps"], **common})
    working = {name: run for name, run in tried.items() if "error" not in run}
    best = min(working, key=lambda name: min(working[name]["step_s"]))
    steps, repeats = (2, 1) if quick else (8, 4)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        runs["ours"].append(_start({"side": "ours", "steps": steps, **common}))
        runs["theirs"].append(_start({"side": "theirs", "choice": best.split("/"), "steps": steps, **common}))
    _report(runs, tried, best, rates[dtype], quick, common)


def _report(
    runs: dict[str, list[dict[str, Any]]], tried: dict[str, Any], best: str, matmul_rate: float, quick: bool,
    common: dict[str, Any],
) -> None:
    step_s, peak = {}, {}
    for side, found in runs.items():
        step_s[side] = statistics.median(span_s for run in found for span_s in run["step_s"])
        peak[side] = statistics.median(run["peak_bytes"] for run in found)
    losses = {side: found[0]["losses"] for side, found in runs.items()}
    gap = abs(losses["ours"][0] - losses["theirs"][0])
    if gap > LOSS_TOLERANCE:
        raise SystemExit(f"not the same work: first losses {losses['ours'][0]} and {losses['theirs'][0]}")
    tokens = BATCH * LENGTH
    flops = SHAPE.train_flops_per_token(LENGTH) * tokens
    figures = {
        "speedup_vs_transformers": round(step_s["theirs"] / step_s["ours"], 3),
        "mfu": round(flops / step_s["ours"] / matmul_rate, 3),
        "mfu_transformers": round(flops / step_s["theirs"] / matmul_rate, 3),
        "tokens_per_s": round(tokens / step_s["ours"], 1),
        "tokens_per_s_transformers": round(tokens / step_s["theirs"], 1),
        "peak_bytes": int(peak["ours"]),
        "peak_bytes_transformers": int(peak["theirs"]),
        "first_loss_gap": round(gap, 5),
        "dtype": common["dtype"],
        "transformers_settings": best,
    }
    table(
        ["", "tokens/s", "step s", "peak MB", "MFU", "first loss"],
        [
            [
                side, f"{tokens / step_s[side]:.0f}", f"{step_s[side]:.3f}", f"{peak[side] / 1e6:.0f}",
                f"{flops / step_s[side] / matmul_rate:.2f}", f"{losses[side][0]:.4f}",
            ]
            for side in ("ours", "theirs")
        ],
    )  # fmt: skip
    configuration = {
        "shape": SHAPE.model_dump(), "batch": BATCH, "length": LENGTH, "quick": quick,
        "matmul_flops_per_s": matmul_rate, "torch": torch.__version__, **common,
    }  # fmt: skip
    finish("pretrain", configuration, {"runs": runs, "transformers_settings_tried": tried}, figures)


def _try(job: dict[str, Any]) -> dict[str, Any]:
    """`_start`, where a death of the process is a result too."""
    try:
        return _start(job)
    except ChildDiedError as died:
        return {"/".join(job["choices"][0]): {"error": str(died)}}


class ChildDiedError(Exception):
    """A measuring process ended without an answer."""


def _start(job: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.pretrain", "--child", json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildDiedError(f"exit code {done.returncode}: {done.stderr.strip()[-300:] or 'no word'}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _child(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    keep_freed_memory()
    # A setting that wants more fails by itself then, instead of taking the machine with it.
    bound_bytes = int(0.6 * psutil.virtual_memory().total)
    resource.setrlimit(resource.RLIMIT_DATA, (bound_bytes, bound_bytes))
    if job["side"] != "trial":
        return _measure(job)
    found: dict[str, Any] = {}
    for choice in job["choices"]:
        try:
            found["/".join(choice)] = _measure({**job, "side": "theirs", "choice": choice})
        except (RuntimeError, ValueError, NotImplementedError) as error:
            found["/".join(choice)] = {"error": str(error)}
        gc.collect()
    return found


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    """Step times (after two steps of warm-up), losses and peak memory of one side."""
    reference = MoeLM(SHAPE.model_copy(update={"compute_dtype": job["dtype"]}), seed=0)
    if job["side"] == "theirs":
        model, step_loss = _theirs(reference, job)
        del reference
    else:
        model, step_loss = reference, _ours(reference)
    gc.collect()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, SHAPE.vocab_size, (4, BATCH, LENGTH + 1), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step_s, losses = [], []
    for index in range(job["steps"] + 2):
        began_s = perf_counter()
        loss, cross_entropy = step_loss(tokens[index % len(tokens)])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(cross_entropy))
        step_s.append(perf_counter() - began_s)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_s": step_s[2:], "losses": losses, "peak_bytes": peak_bytes}


def _ours(model: MoeLM) -> Any:
    def step_loss(tokens: Tensor) -> tuple[Tensor, float]:
        # The routers' balance and z losses are part of our step; the cross entropy is what is compared.
        out = model.loss(tokens, step=0, sample_ids=range(BATCH))
        return out.loss_sum / out.weight, float(out.stats["nll_sum"]) / out.weight

    return step_loss


def _theirs(reference: MoeLM, job: dict[str, Any]) -> tuple[Any, Any]:
    """transformers' Qwen2-MoE with the weights of `reference`, and its loss."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    experts, attention, precision = job["choice"]
    config = Qwen2MoeConfig(
        vocab_size=SHAPE.vocab_size, hidden_size=SHAPE.hidden, num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads, head_dim=SHAPE.head_dim,
        num_experts=SHAPE.experts, num_experts_per_tok=SHAPE.top_k, norm_topk_prob=True,
        moe_intermediate_size=SHAPE.expert_width, shared_expert_intermediate_size=SHAPE.shared_width,
        qkv_bias=False, use_cache=False,
        max_position_embeddings=SHAPE.max_positions, rms_norm_eps=SHAPE.norm_eps, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": SHAPE.rope_theta}, output_router_logits=False,
        attn_implementation=attention, experts_implementation=experts,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config)
    _copy_weights(reference, model)
    low = job["dtype"] == "bf16"
    if low and precision == "weights":
        model = model.to(torch.bfloat16)

    def step_loss(tokens: Tensor) -> tuple[Tensor, float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=low and precision == "autocast"):
            inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
            loss: Tensor = model(input_ids=inputs, labels=inputs, shift_labels=targets).loss
        return loss, float(loss.detach())

    return model.train(), step_loss


@torch.no_grad()
def _copy_weights(ours: MoeLM, theirs: Any) -> None:
    theirs.model.embed_tokens.weight.copy_(ours.embed)
    theirs.model.norm.weight.copy_(ours.final_norm.weight)
    theirs.lm_head.weight.copy_(ours.head.weight)
    for block, layer in zip(ours.layers, theirs.model.layers, strict=True):
        assert isinstance(block, Block)
        layer.input_layernorm.weight.copy_(block.attention_norm.weight)
        layer.post_attention_layernorm.weight.copy_(block.moe_norm.weight)
        for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("dense", "o_proj")):
            getattr(layer.self_attn, name).weight.copy_(getattr(block.attention, part))
        layer.mlp.gate.weight.copy_(block.moe.router.weight)
        layer.mlp.experts.gate_up_proj.copy_(block.moe.gate_up.flatten(1, 2))
        layer.mlp.experts.down_proj.copy_(block.moe.down)
        layer.mlp.shared_expert.gate_proj.weight.copy_(block.moe.shared_gate_up[0])
        layer.mlp.shared_expert.up_proj.weight.copy_(block.moe.shared_gate_up[1])
        # Theirs has a sigmoid gate on the shared expert, ours has none: a gate held at one half and twice the
        # weights behind it make the same function.
        layer.mlp.shared_expert.down_proj.weight.copy_(2 * block.moe.shared_down)
        layer.mlp.shared_expert_gate.weight.zero_()


if __name__ == "__main__":
    main()
