"""Hand-written Ray Tune script for the same sweep: a trainable function that uses this project's modules.

python -m tests.benchmarks.sweep_peer FOLDER CONFIG CHANGE..., with KEY=[...] for each
searched key; FOLDER/stamps stores when each trial started, finished its first step, and ended.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

SEARCHED = ("distill.alpha", "distill.temperature")
METRIC = "deepest_top1"


def trial(params: dict[str, Any]) -> None:
    """Train, evaluate on the validation split, and report the metrics with a checkpoint to Tune."""
    start = time.time()
    import tempfile

    import torch

    from fmfsd.config import load_config
    from tests.benchmarks.sweep_peer_loop import PlainTrial

    torch.set_num_threads(1)
    values = [f"{key}={params[key]}" for key in SEARCHED]
    plain = PlainTrial(load_config(params["config"], [*params["changes"], *values]))
    plain.step(0)
    first_step = time.time()
    for step in range(1, plain.steps):
        plain.step(step)
    metrics = plain.evaluate("valid")
    with tempfile.TemporaryDirectory() as folder:
        torch.save(plain.state(), Path(folder) / "checkpoint.pt")
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
    stamps = {"start": start, "first_step": first_step, "end": time.time()}
    Path(params["stamps"], tune.get_context().get_trial_id()).write_text(json.dumps(stamps))


def search(folder: Path, config: str, changes: list[str], values: dict[str, list[float]]) -> tune.Result:
    stamps = folder / "stamps"
    stamps.mkdir(parents=True)
    fixed = {"config": config, "changes": changes, "stamps": str(stamps)}
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={**fixed, **{key: tune.grid_search(grid) for key, grid in values.items()}},
        tune_config=tune.TuneConfig(metric=METRIC, mode="max"),
        run_config=tune.RunConfig(name="search", storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    return results.get_best_result()


def test(best: tune.Result) -> dict[str, float]:
    """Return the winner's accuracies on the test set."""
    import torch

    from fmfsd.config import load_config
    from tests.benchmarks.sweep_peer_loop import PlainTrial

    assert best.config is not None
    assert best.checkpoint is not None
    values = [f"{key}={best.config[key]}" for key in SEARCHED]
    plain = PlainTrial(load_config(best.config["config"], [*best.config["changes"], *values]))
    with best.checkpoint.as_directory() as folder:
        plain.load(torch.load(Path(folder) / "checkpoint.pt"))
    return plain.evaluate("test")


def main() -> None:
    folder, config, *changes = sys.argv[1:]
    parts = [change.partition("=") for change in changes]
    values = {key: json.loads(text) for key, _, text in parts if key in SEARCHED}
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 << 20)
    best = search(
        Path(folder), config, [change for change in changes if change.partition("=")[0] not in values], values
    )
    print(json.dumps({"config": best.config, "valid": best.metrics, "test": test(best)}, default=str))
    ray.shutdown()


if __name__ == "__main__":
    main()
