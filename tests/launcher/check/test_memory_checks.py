"""Checks of memory, disk space and batch sizes, with fixed costs and with those of the real cost probe."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fmfsd.config import dump_config, load_config
from fmfsd.data.shards.storage import PREFETCH_BYTES
from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import Resources
from launcher.check import image_storage, machine_checks, memory_and_batch_checks
from launcher.check.launch_checks import find_warnings
from launcher.config.byte_sizes import format_size
from launcher.config.launch_config import LaunchConfig
from launcher.launch_request import LaunchRequest, check_request
from launcher.resources import config_cost as costs_module
from launcher.resources import host_probe as survey_module
from launcher.resources.config_cost import Costs, probe_costs
from launcher.resources.site import Site
from tests.helpers.checks import CPU_SITE, DEFAULT_LAUNCH, assert_no_problems, run_failing_checks
from tests.helpers.processes import run_command
from tests.helpers.runs import tiny_config

GIB = 1 << 30
PARTS = {"parameters": GIB, "buffers": 0, "gradients": GIB, "optimizer": GIB, "activations": 12 * GIB, "data": GIB}
LARGE = Costs(parameters=GIB // 4, macs=10**9, memory={**PARTS, "total": 16 * GIB})
"""Costs of each of two workers."""
TWO = LaunchConfig(gpus=2)


def gpus(count: int, gib: int = 0) -> Site:
    return Site(Resources(cores=8, gpus=tuple(map(str, range(count))), gpu_memory=gib * GIB))


def test_a_model_that_fits_passes(data_root: Path) -> None:
    assert_no_problems(tiny_config(data_root), costs=LARGE)
    assert not list(memory_and_batch_checks.check_device_memory(tiny_config(data_root), TWO, gpus(2, gib=16), LARGE))


def test_too_little_gpu_memory_is_refused_with_settings_that_fit(data_root: Path) -> None:
    config = tiny_config(data_root, "train.batch=512", "train.micro_batch=256")
    (problem,) = memory_and_batch_checks.check_device_memory(config, TWO, gpus(2, gib=10), LARGE)
    assert problem.message == (
        "a worker needs at least 16.0 GiB, 12.0 GiB of it for activations; its GPU has 10.0 GiB: by these figures "
        "4 workers or train.micro_batch 128 (which is another run) would fit"
    )


def test_more_workers_are_not_advised_if_they_share_the_memory(data_root: Path) -> None:
    site = Site(Resources(cores=8, memory=30 * GIB))
    code, text = run_failing_checks(tiny_config(data_root), TWO, site, costs=LARGE)
    assert code == 3
    assert "its machine has 15.0 GiB for it: by these figures 1 worker or train.micro_batch 64" in text
    hosts = Site(Resources(cores=8, memory=30 * GIB), "ssh", ("n1", "n2"))
    assert not list(
        memory_and_batch_checks.check_device_memory(tiny_config(data_root), LaunchConfig(nodes=2), hosts, LARGE)
    )


def test_a_model_that_never_fits_gets_that_message(data_root: Path) -> None:
    (problem,) = memory_and_batch_checks.check_device_memory(tiny_config(data_root), TWO, gpus(2, gib=2), LARGE)
    assert problem.message.endswith("only a smaller model fits")


def test_an_offloaded_optimizer_needs_room_in_the_memory_of_its_machine(data_root: Path) -> None:
    """With GPUs, the optimizers of all workers of a machine share its memory; on a CPU they add to the other
    tensors."""
    offloading = Costs(memory={**LARGE.memory, "offloaded": 5 * GIB})
    two = Site(Resources(cores=8, gpus=("0", "1"), gpu_memory=16 * GIB, memory=9 * GIB))
    (problem,) = memory_and_batch_checks.check_offload_memory(TWO, two, offloading)
    assert str(problem) == (
        "engine.offload: the optimizers of 2 workers need at least 10.0 GiB of their machine, which has 9.0 GiB: set "
        "it to false, or take more nodes with fewer GPUs each"
    )
    assert not list(memory_and_batch_checks.check_offload_memory(LaunchConfig(gpus=1), two, offloading))
    cpu = Site(Resources(cores=8, memory=20 * GIB))
    (problem,) = memory_and_batch_checks.check_device_memory(tiny_config(data_root), LaunchConfig(), cpu, offloading)
    assert "a worker needs at least 21.0 GiB" in problem.message
    assert not list(memory_and_batch_checks.check_offload_memory(LaunchConfig(), cpu, offloading))


def test_host_memory_has_to_suffice_for_the_gpu_workers(data_root: Path) -> None:
    """Image buffers, copies of a checkpoint, and offloaded optimizers."""
    config, costs = tiny_config(data_root), Costs(parameters=GIB // 4, memory={**LARGE.memory, "offloaded": GIB})
    eight = LaunchConfig(gpus=8)

    def messages(gib: int, launch: LaunchConfig = eight) -> list[str]:
        site = Site(Resources(cores=8, gpus=tuple("01234567"), gpu_memory=64 * GIB, memory=gib * GIB))
        return [str(problem) for problem in memory_and_batch_checks.check_host_memory(config, launch, site, costs)]

    assert messages(13) == [
        "memory: 8 workers with GPUs also need at least 14.0 GiB of their machine's memory (2.0 GiB to read images, "
        "4.0 GiB for the copies of a checkpoint, 8.0 GiB for optimizers), which has 13.0 GiB: take more nodes with "
        "fewer GPUs each"
    ]
    assert messages(15) == messages(0) == messages(13, LaunchConfig(gpus=4)) == []
    code, text = run_failing_checks(
        config, eight, Site(Resources(8, tuple("01234567"), 13 * GIB, 64 * GIB)), costs=costs
    )
    assert (code, "8 workers with GPUs also need" in text) == (3, True)


def test_unknown_gpu_memory_is_not_checked(data_root: Path) -> None:
    assert not list(memory_and_batch_checks.check_device_memory(tiny_config(data_root), TWO, gpus(2), LARGE))


def test_the_disk_has_to_hold_all_checkpoints_of_this_model(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and momenta of four checkpoints: the two newest, the best and the one being written."""
    config = tiny_config(data_root)
    assert machine_checks.total_checkpoint_bytes(config, LARGE) == 8 * GIB
    assert machine_checks.total_checkpoint_bytes(tiny_config(data_root, "optim.momentum=0"), LARGE) == 4 * GIB
    assert machine_checks.total_checkpoint_bytes(tiny_config(data_root, "train.precision=fp64"), LARGE) == 16 * GIB
    assert machine_checks.total_checkpoint_bytes(config, Costs()) == machine_checks.FREE_BYTES
    assert f"a run needs at least {2**41}" in run_failing_checks(config, costs=Costs(parameters=1 << 56))[1]


@pytest.mark.parametrize(
    ("launch", "site", "changes", "expected"),
    [
        (LaunchConfig(gpus=4), gpus(4), (), None),
        (LaunchConfig(gpus=8), CPU_SITE, (), None),
        (
            LaunchConfig(gpus=8),
            gpus(8),
            (),
            "train.batch 128 gives each of 8 GPUs 16 images at a time, too few to use ",
        ),
        (LaunchConfig(gpus=8), gpus(8), (), ": take 4 workers or train.batch 256 (which is another run)"),
        (LaunchConfig(gpus=4), gpus(4), ("train.micro_batch=64",), "take 2 workers or train.micro_batch 128 ("),
    ],
)
def test_batches_that_are_too_small_for_the_gpus_are_a_warning(
    launch: LaunchConfig, site: Site, changes: tuple[str, ...], expected: str | None, data_root: Path, run: RunDir
) -> None:
    messages = find_warnings(tiny_config(data_root, *changes), launch, site, run)
    assert messages == [] if expected is None else expected in messages[0]


@pytest.mark.usefixtures("processes")
def test_the_real_cost_probe_runs_once_and_its_costs_refuse_a_small_machine(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data_root)
    preset = ["--set", "data.name=cifar10", "--set", "model.backbone=resnet8", "--", "cifar100-resnet18"]
    settings = ["--set", "train.precision=fp32", "--set", "train.channels_last=false", *preset]
    costs = probe_costs(config, settings, workers=1, environment=os.environ)
    monkeypatch.setattr(costs_module, "_run_probe", lambda arguments: pytest.fail("probed again"))
    assert probe_costs(config, settings, workers=1, environment=os.environ) == costs
    assert costs.parameters > 80_000
    assert costs.memory["total"] > costs.memory["activations"] > 100 << 20
    small = Site(Resources(cores=2, memory=100 << 20))
    assert (
        f"memory: a worker needs at least {format_size(costs.memory['total'])}"
        in run_failing_checks(config, site=small, costs=costs)[1]
    )


def test_the_cost_probe_does_not_run_for_a_wrong_number_of_workers(data_root: Path) -> None:
    assert probe_costs(tiny_config(data_root), ["nonsense"], workers=3, environment=os.environ) == Costs()


@pytest.mark.parametrize("replaced", [False, True])
def test_the_check_fetches_no_weights_that_a_checkpoint_replaces(
    replaced: bool, data_root: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (
        "data.name=cifar10",
        "model.backbone=timm/test_resnet",
        "model.pretrained=true",
        f"data.root={data_root}",
    )
    if replaced:
        run.config.write_text(dump_config(load_config("cifar100-resnet18", changes)))
        (run.checkpoints / "step-00000001").mkdir()
    calls = list[Sequence[str]]()

    def fake_probe(arguments: Sequence[str]) -> Costs:
        calls.append(arguments)
        return Costs()

    monkeypatch.setattr(costs_module, "_run_probe", fake_probe)
    monkeypatch.setattr(survey_module, "find_import_differences", lambda *_: {})
    check_request(
        LaunchRequest("cifar100-resnet18", changes, DEFAULT_LAUNCH, CPU_SITE, "check", as_json=False),
        run,
        os.environ,
        ".",
    )
    assert ["model.pretrained=false" in arguments for arguments in calls] == [replaced]


@pytest.mark.usefixtures("processes")
def test_problems_of_the_cost_probe_are_reported(data_root: Path) -> None:
    refused = probe_costs(tiny_config(data_root, "seed=7"), ["--", "nonsense"], workers=64, environment=os.environ)
    code, text = run_failing_checks(tiny_config(data_root), costs=refused)
    assert (code, "unknown preset 'nonsense'" in text) == (2, True)


@pytest.mark.usefixtures("processes")
def test_a_torch_that_does_not_load_is_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise OSError('libcudart.so.99: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path / "broken"), *filter(None, [os.environ.get("PYTHONPATH")])])
    answer = run_command(
        "fmfsd-launch", "smoke", "--set", "train.batch=64", "--check", cwd=tmp_path, env={"PYTHONPATH": path}
    )
    assert answer.returncode == 0, answer.stderr
    assert "shapes and memory could not be checked: `fmfsd probe`: " in answer.stderr
    assert "libcudart.so.99" in answer.stderr


@pytest.mark.usefixtures("processes")
def test_the_cost_probe_has_a_timeout(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> None:
    monkeypatch.setattr(costs_module, "ANSWER_TIMEOUT_S", 0.01)
    costs = probe_costs(tiny_config(data_root), ["--", "smoke"], workers=32, environment=os.environ)
    assert costs.probe_error == "`fmfsd probe`: no answer in 0.01 s"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert (
        "No such file"
        in probe_costs(tiny_config(data_root), ["--", "smoke"], workers=32, environment=os.environ).probe_error
    )


def test_images_are_counted_where_they_will_be_stored(data_root: Path) -> None:
    """The prepared set has 384 samples of 3088 bytes; the cost probe knows only the published size."""
    config, launch = tiny_config(data_root), LaunchConfig(gpus=2)
    held, other = 3088 * 160, LARGE.memory["total"] - LARGE.memory["data"]
    roomy, tight = (Site(Resources(cores=2, memory=2 * 2 * held + more)) for more in (0, -2))
    memory = image_storage.add_image_memory(LARGE, config, launch, roomy).memory
    assert (memory["data"], memory["total"], image_storage.describe_image_storage(config, launch, roomy)) == (
        held,
        other + held,
        "",
    )
    window = 64 * 160 + 2 * PREFETCH_BYTES
    memory = image_storage.add_image_memory(LARGE, config, launch, tight).memory
    assert (memory["data"], memory["total"]) == (window, other + window)
    message = image_storage.describe_image_storage(config, launch, tight)
    assert message == "images (0 MiB a worker) stay in their files and are prefetched"
    in_memory = tiny_config(data_root, "data.images_in=memory")
    assert image_storage.add_image_memory(LARGE, in_memory, launch, tight).memory["data"] == held
    assert image_storage.add_image_memory(Costs(), config, launch, tight) == Costs()


def test_the_size_of_an_unprepared_set_is_the_published_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "data.name=cifar100")
    part = image_storage.worker_share(config, 2)
    assert (part.samples, part.in_memory_bytes) == (25_008 + 5_008, 30_016 * 3088)


def test_images_in_files_is_offered_as_a_remedy(data_root: Path) -> None:
    site = Site(Resources(cores=8, memory=31 * GIB))
    assert (
        "or data.images_in files or train.micro_batch"
        in run_failing_checks(tiny_config(data_root), TWO, site, costs=LARGE)[1]
    )


@pytest.mark.usefixtures("processes")
def test_the_check_reports_that_images_stay_in_their_files(data_root: Path) -> None:
    arguments = (
        "--set",
        "data.name=cifar10",
        "--set",
        f"data.root={data_root}",
        "--set",
        "data.images_in=files",
        "--check",
    )
    answer = run_command("fmfsd-launch", "cifar100-resnet8", *arguments, cwd=data_root)
    assert answer.returncode == 0, answer.stderr
    first = answer.stdout.splitlines()[0]
    assert first.startswith("all checks passed: 1 worker on cpu, 1 node agent; cifar10 is prepared in ")
    assert first.endswith("; images (1 MiB a worker) stay in their files and are prefetched")
