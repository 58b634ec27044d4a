"""A job on Ray Data, as its users write it: `python -m benchmarks.infer.ray_data SETTINGS.json`.

Runs in the peers' environment, and in a network namespace that has only `lo`. With `checkpoint` its
checkpointing is on, as documented: `DataContext.checkpoint_config` with an id column.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
import ray.data

from benchmarks.infer import stages


class Actor:
    """A stage of ours in an actor of Ray Data's."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._stage = getattr(stages, name)(**options)
        self._stage.setup(None)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch | self._stage(batch)


def main(settings: dict[str, Any]) -> None:
    """Read, map, write."""
    ray.init(
        num_cpus=settings["cpus"], include_dashboard=False, log_to_driver=False, configure_logging=False,
        object_store_memory=settings["store_bytes"], _temp_dir=settings["temp"],
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    if settings["checkpoint"]:
        from ray.data.checkpoint import CheckpointConfig

        context.checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=settings["checkpoint"], delete_checkpoint_on_success=False
        )
    if settings["errors"]:
        context.max_errored_blocks = settings["errors"]
    # The reader that Ray 2.60 takes by itself makes one block of small files, whatever
    # `override_num_blocks` says.
    context.use_datasource_v2 = settings["v2"]
    data = ray.data.read_parquet(settings["source"], override_num_blocks=settings["blocks"] or None)
    if settings["repartition"]:
        data = data.repartition(settings["repartition"])
    data = data.map_batches(
        Actor,
        fn_constructor_args=(settings["stage"], settings["options"]),
        batch_size=settings["batch"],
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=settings["actors"], max_tasks_in_flight_per_actor=settings["in_flight"] or None
        ),
        num_cpus=settings["actor_cpus"],
    )
    data.write_parquet(settings["sink"])
    print(json.dumps({"ray": ray.__version__}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
