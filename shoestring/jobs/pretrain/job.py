"""The pre-training job: packs, plans, and scores what was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import torch

from shoestring.base.record import RunRecord
from shoestring.base.units import format_bytes
from shoestring.cluster.costs import JobCost
from shoestring.cluster.topology import Cluster, usable_cores
from shoestring.cluster.workers import Plan
from shoestring.data.prepare import Prepared as Data
from shoestring.data.prepare import prepare
from shoestring.infer.prepared import PREPARED
from shoestring.jobs.pretrain.config import PretrainConfig, Ready, ready_of
from shoestring.jobs.pretrain.measure import Rates, rates_by_threads
from shoestring.jobs.pretrain.scoring import score_run
from shoestring.models.moe_lm.config import MoeConfig
from shoestring.models.moe_lm.model import DTYPES, MoeLM
from shoestring.train import planning
from shoestring.train.muon import build_optimizer
from shoestring.train.runs import Prepared, View

SHOWN = 10
MAKER = "shoestring.jobs.pretrain.task:make_task"
WIDTHS: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp32": 4})  # bytes of a number


class PretrainJob:
    """Trains a mixture-of-experts language model on text.

    Args:
        config: the resolved settings.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self._config = config

    @property
    def config(self) -> PretrainConfig:
        """The resolved settings."""
        return self._config

    def plan(self, rates: Rates | None = None) -> Plan:
        """Who would do what on this machine.

        Args:
            rates: of matrix products by threads and dtype; measured where not given.

        Raises:
            ConfigError: the model does not fit into the memory, however it is laid out; a wish cannot be
                followed; the cluster file does not match.
        """
        config = self._config
        cluster = planning.listed_cluster(config)
        rates = rates or self._rates(cluster)
        dtype = config.model.compute_dtype if config.compute_dtype == "auto" else config.compute_dtype
        costs = step_costs(config, dtype)
        if cluster is not None:
            return planning.plan_listed(costs, cluster, config.sharding_wish)
        flops_per_s = {threads: by_dtype[dtype] for threads, by_dtype in rates.items()}
        here = planning.described_cluster(flops_per_s)
        return planning.plan_here(costs, here, config.sharding_wish, config.fleet.members.workers)

    def prepare(self, run_dir: Path, say: Callable[[str], None]) -> Prepared:
        """Pack the text (once), fix the compute dtype (once), plan."""
        config = self._config
        cluster = planning.listed_cluster(config)  # what cannot be followed is refused before the work
        data = prepare(config.data, config.tokenizer, config.packing, _progress(say))
        for item in data.skipped[:SHOWN]:
            say(f"skipped {item.path}: {item.reason}")
        if len(data.skipped) > SHOWN:
            say(f"... and {len(data.skipped) - SHOWN} more; all stand in the record")
        rates = self._rates(cluster)
        dtype = _compute_dtype(config, run_dir, rates)
        shape = {"vocab_size": data.train.vocab_size, "compute_dtype": dtype}
        self._config = config = config.model_copy(update={"model": config.model.model_copy(update=shape)})
        model = config.model
        plan = self.plan(rates)
        ready = Ready(
            config.model_dump(),
            str(data.train_dir.resolve()),
            str(data.heldout_dir.resolve()),
            str(data.tokenizer_path.resolve()),
        )
        (run_dir / PREPARED).write_bytes(msgspec.json.encode(ready))
        samples = (data.train.tokens - 1) // config.seq_len
        facts = _facts(data) | {
            "samples": samples,
            "seq_len": config.seq_len,
            "compute_dtype": dtype,
            "matmul_flops_per_s": rates,
            "parameters": model.parameter_count(),
            "active_parameters": model.active_parameter_count(),
        }
        say(
            f"{data.train.documents} texts, {format_bytes(data.train.n_bytes)}, "
            f"{data.train.tokens:,} tokens; "
            f"held out {data.heldout.documents} texts, {format_bytes(data.heldout.n_bytes)}; model of "
            f"{model.parameter_count():,} parameters, {model.active_parameter_count():,} active, {dtype}"
        )
        return Prepared(MAKER, msgspec.to_builtins(ready), samples, plan, facts)

    def finish(self, run_dir: Path, record: RunRecord, view: View) -> dict[str, Any]:
        """Score the model and its baselines on the held-out files; let it write a sample."""
        return score_run(run_dir, record, view)

    def _rates(self, cluster: Cluster | None) -> Rates:
        """As the cluster file has them, or else measured here."""
        known = planning.rates_in(cluster, tuple(DTYPES)) if cluster is not None else {}
        if known:
            return known
        if torch.cuda.is_available():
            return rates_by_threads([1])
        cores, workers = usable_cores(), self._config.fleet.members.workers
        return rates_by_threads(sorted({max(1, cores // n) for n in range(1, max(cores, workers) + 1)}))


def _compute_dtype(config: PretrainConfig, run_dir: Path, rates: Rates) -> str:
    """The dtype of this run: a resumed one keeps what it began with."""
    if (run_dir / PREPARED).exists():
        return ready_of(run_dir).config.model.compute_dtype
    if config.compute_dtype != "auto":
        return config.compute_dtype
    single = rates[min(rates, key=int)]
    return "bf16" if single["bf16"] >= single["fp32"] else "fp32"


def step_costs(config: PretrainConfig, dtype: str) -> planning.Costs:
    """What a step costs where everybody holds everything, and where state is sharded.

    Muon keeps 4 bytes a parameter of its matrices, AdamW 8 of the rest. Under NNN the workers share Muon's
    orthogonalisation and sum up its results, in bf16.

    Args:
        dtype: of activations and matrix products.
    """
    model, parallel = config.model, config.sharding_wish
    with torch.device("meta"):
        meta = MoeLM(model, seed=None)
    groups = build_optimizer(meta, config.optimizer).param_groups
    matrices = sum(p.numel() for group in groups if group["rule"] == "muon" for p in group["params"])
    parameters = model.parameter_count()
    layers = sum(p.numel() for p in meta.layers.parameters())
    share = matrices / parameters
    on_wire = config.train.exchange_dtype

    def cost(kept: str) -> JobCost:
        width = WIDTHS[kept]
        return JobCost(
            parameters=parameters,
            flops_per_sample=model.train_flops_per_token(config.seq_len) * config.seq_len,
            activation_bytes_per_sample=_activation_bytes(model, config.seq_len),
            micro_batch=config.train.micro_batch,
            batch=config.fleet.pace.batch,
            gradient_bytes=width if on_wire == "as_is" else WIDTHS[on_wire],
            accumulated_bytes=width,
            layers=model.layers,
            root_parameters=parameters - layers,
            compute_dtype=dtype,
            parameter_bytes=width,
            moment_bytes=4 * share + 8 * (1 - share),
            update_bytes=2 * share,
        )

    own = "fp32"  # what the model holds
    kept = {"auto": (own, dtype), "as_is": (own, own)}
    whole, sharded = kept[parallel.dtype] if parallel.dtype in kept else (parallel.dtype, parallel.dtype)
    return planning.Costs(cost(whole), cost(sharded))


def _activation_bytes(model: MoeConfig, seq_len: int) -> float:
    """Kept between forward and backward of one sample (ours, rounded up): per token and layer about
    10 vectors of the hidden width, the attention's inputs and the experts' inner vectors, 2 bytes each,
    and the head's logits in fp32 once."""
    expert = (model.top_k + model.shared_experts) * model.expert_width
    layer = 10 * model.hidden + 2 * model.qkv_width + 4 * expert
    return float(seq_len * (2 * model.layers * layer + 4 * model.vocab_size))


def _facts(data: Data) -> dict[str, Any]:
    """What the record says of the data."""
    return {
        "files": data.files,
        "train_texts": data.train.documents,
        "train_bytes": data.train.n_bytes,
        "train_tokens": data.train.tokens,
        "heldout_texts": data.heldout.documents,
        "heldout_bytes": data.heldout.n_bytes,
        "heldout_tokens": data.heldout.tokens,
        "vocabulary": data.train.vocab_size,
        "twins_left_out": len(data.heldout.duplicates),
        "empty_texts": data.train.empty + data.heldout.empty,
        "skipped_files": len(data.skipped),
        "skipped": [{"path": item.path, "reason": item.reason} for item in data.skipped],
    }


def _progress(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Says how far each phase is, at each quarter."""
    said: dict[str, int] = {}

    def show(phase: str, done_bytes: int, total_bytes: int) -> None:
        quarter = 4 * done_bytes // max(1, total_bytes)
        if quarter > (said[phase] if phase in said else 0):
            said[phase] = quarter
            say(f"{phase}: {format_bytes(done_bytes)} of {format_bytes(total_bytes)}")

    return show
