"""The number of concurrent trials: limited by cores, GPUs and memory, on different machines."""

import pytest

from fmfsd.errors import CheckError
from launcher.agent.available_resources import Resources
from launcher.config.launch_config import LaunchConfig, TuneOptions
from launcher.tune.records.trial_resources import TrialResources, fit_trials

GIB = 1 << 30
BOX = Resources(cores=64, gpus=tuple(map(str, range(8))), memory=256 * GIB, gpu_memory=80 * GIB)
LAPTOP = Resources(cores=8, memory=16 * GIB)


def shape(
    *machines: Resources, trials: int = 100, concurrent: int | None = None, need: int = 0, **launch: int
) -> TrialResources:
    options = TuneOptions(trials=trials, concurrent=concurrent)
    return fit_trials(machines, LaunchConfig(**{"gpus": 1, **launch}), options, worker_bytes=need)  # type: ignore[arg-type]


def test_gpus_and_cores_are_divided_among_as_many_trials_as_fit() -> None:
    assert shape(BOX) == TrialResources("cuda", cores=8, gpus=1, concurrent=8)
    assert shape(BOX, gpus=2) == TrialResources("cuda", cores=16, gpus=2, concurrent=4)
    assert shape(BOX, BOX, nodes=2, gpus=8) == TrialResources("cuda", cores=64, gpus=8, concurrent=1)
    assert shape(BOX, gpus=3) == TrialResources("cuda", cores=32, gpus=3, concurrent=2)


def test_without_gpus_each_worker_has_at_least_one_core_and_fewer_trials_have_more() -> None:
    assert shape(LAPTOP) == TrialResources("cpu", cores=1, gpus=0, concurrent=8)
    assert shape(LAPTOP, trials=3) == TrialResources("cpu", cores=2, gpus=0, concurrent=3)
    assert shape(LAPTOP, concurrent=2) == TrialResources("cpu", cores=4, gpus=0, concurrent=2)


def test_memory_limits_concurrent_trials() -> None:
    assert shape(LAPTOP, need=5 * GIB) == TrialResources("cpu", cores=2, gpus=0, concurrent=3)
    with pytest.raises(CheckError, match="a trial requests 1 x 1 GPUs and at least 90.0 GiB of their memory"):
        shape(BOX, need=90 * GIB)


def test_each_of_several_different_machines_is_used_fully() -> None:
    assert shape(BOX, Resources(cores=4, gpus=("0", "1"))).concurrent == 10


def test_trials_that_fit_nowhere_are_refused_with_the_resources() -> None:
    with pytest.raises(CheckError, match="a trial requests 1 x 9 cores; available: a machine with 8 cores, 0 GPUs"):
        shape(LAPTOP, gpus=9)
    with pytest.raises(CheckError, match="--concurrent: 9 at a time, but only 8 fit"):
        shape(LAPTOP, concurrent=9)
