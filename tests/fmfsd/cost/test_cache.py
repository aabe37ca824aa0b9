"""The probe cache: a probe runs once per config, device and version, and cached files are validated."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fmfsd.config import RunConfig, load_config
from fmfsd.config.resume_rules import flatten_keys
from fmfsd.cost.cache import _KEYED_SETTINGS, estimate_cache_dir, parse_estimate, read_cached, read_or_estimate
from fmfsd.cost.cost_report import Cost, CostEstimate, Device, HeadCost, Layer, MemoryCost, ParameterCount
from tests.helpers.processes import run_command

MAP = (64, 8, 8)
PATH = "stage3 64x8x8 > head", (Layer("stage3", MAP),)
PROBE = CostEstimate(
    2,
    "none",
    (
        HeadCost(
            "deepest", "stage3", MAP, *PATH, Cost(1, 7), 1 / 11, alone=Cost(8, 77), of_plain=1.0, exits_of_plain=1.0
        ),
    ),
    ParameterCount(8, 5, 2, 1),
    77,
    plain=Cost(8, 77),
    trunk=Cost(7, 70),
    shared=Cost(0, 0),
    memory=MemoryCost(8, 1, 8, 8, 75, 100, 200),
)
NOT_IN_KEY = {
    *("data.autoaugment", "data.mixup", "data.cutmix", "data.resized_crop", "data.images_in"),
    *(
        "seed",
        "tracker",
        "data.root",
        "data.crop_padding",
        "data.crop_fill",
        "data.flip",
        "data.cutout",
    ),
    *("optim.lr", "optim.base_batch", "optim.warmup", "optim.weight_decay", "optim.nesterov", "optim.milestones"),
    *(
        "optim.decay_norms",
        "optim.gamma",
        "optim.clip_norm",
        "train.epochs",
        "train.max_steps",
        "train.init_from",
        "train.evaluate_every",
        "train.evaluate_test",
    ),
    *("train.evaluate_batch", "train.log_every", "train.deterministic", "checkpoint.every_epochs"),
    *("checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep"),
    "optim.betas",
}
"""Config keys that do not influence the costs of a forward pass, of the weights and of the shards."""


def write_cache(folder: Path, config: RunConfig, workers: int = 2) -> Path:
    """Cache PROBE as the result for `config`; return the cache file."""
    read_or_estimate(lambda *_: PROBE, config, workers, "cpu", folder)
    (path,) = folder.iterdir()
    return path


def test_a_cached_result_is_returned_without_a_probe(tmp_path: Path) -> None:
    folder, config = tmp_path / "a" / "b", load_config("smoke")
    assert read_cached(config, 2, "cpu", folder) is None
    write_cache(folder, config)
    result = read_cached(config, 2, "cpu", folder)
    assert result == json.loads(json.dumps(asdict(PROBE)))
    assert read_or_estimate(fail_if_probed, config, 2, "cpu", folder) == result
    assert parse_estimate(result) == PROBE


def fail_if_probed(config: RunConfig, workers: int, device: Device) -> CostEstimate:
    raise AssertionError("probed again")


def test_every_config_key_is_in_the_cache_key_or_excluded() -> None:
    """A new config key must be added to one of the two lists."""
    keys = {key for key, _ in flatten_keys(load_config("smoke").model_dump(mode="json"))}
    counted = {f"{section}.{name}" for section, names in _KEYED_SETTINGS.items() for name in names} | {"method"}
    assert (counted | NOT_IN_KEY, counted & NOT_IN_KEY) == (keys, set())


@pytest.mark.parametrize("change", ["train.batch=256", "model.branches=[stage1]", "optim.momentum=0", "method=byot"])
def test_a_result_for_another_config_is_not_used(change: str, tmp_path: Path) -> None:
    write_cache(tmp_path / "probes", load_config("smoke"))
    assert read_cached(load_config("smoke", ["optim.lr=1", "seed=9"]), 2, "cpu", tmp_path / "probes") is not None
    assert read_cached(load_config("smoke", [change]), 2, "cpu", tmp_path / "probes") is None
    assert read_cached(load_config("smoke"), 4, "cpu", tmp_path / "probes") is None


def test_a_result_for_another_device_is_not_used(tmp_path: Path) -> None:
    write_cache(tmp_path / "probes", load_config("smoke"))
    assert read_cached(load_config("smoke"), 2, "cuda", tmp_path / "probes") is None


def test_a_result_with_cpu_kernels_is_not_used_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, autograd on a CPU saves more; a GPU never uses these kernels."""
    folder, config = tmp_path / "probes", load_config("smoke")
    for device in ("cpu", "cuda"):
        read_or_estimate(lambda *_: PROBE, config, 2, device, folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_cached(config, 2, "cpu", folder) is None
    assert read_cached(config, 2, "cuda", folder) is not None


@pytest.mark.parametrize("attribute", ["version", "_sources"])
def test_a_result_of_another_torch_or_another_fmfsd_is_not_used(
    attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(tmp_path / "probes", load_config("smoke"))
    monkeypatch.setattr(f"fmfsd.cost.cache.{attribute}", lambda *_: "another")
    assert read_cached(load_config("smoke"), 2, "cpu", tmp_path / "probes") is None


def edit_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_text(path.read_text()[:-9]),
    "no object": lambda path: path.write_text("[]"),
    "empty": lambda path: path.write_text(""),
    "of another key": edit_json(lambda content: content.update(key="0" * 64)),
    "without its probe": edit_json(lambda content: content.pop("probe")),
    "text for a number": edit_json(lambda content: content["probe"].update(macs="many")),
    "a missing number": edit_json(lambda content: content["probe"]["memory"].pop("total")),
    "writable by others": lambda path: path.chmod(0o602),
    "a link": replace_by_link,
    "a folder": replace_by_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_or_one_that_others_can_write_is_replaced(damage: str, tmp_path: Path) -> None:
    config = load_config("smoke")
    DAMAGES[damage](write_cache(tmp_path / "probes", config))
    assert read_cached(config, 2, "cpu", tmp_path / "probes") is None
    assert parse_estimate(read_or_estimate(lambda *_: PROBE, config, 2, "cpu", tmp_path / "probes")) == PROBE
    assert (read_cached(config, 2, "cpu", tmp_path / "probes") is not None) == (damage != "a folder")


def test_a_cache_folder_that_cannot_be_created_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = read_or_estimate(lambda *_: PROBE, load_config("smoke"), 2, "cpu", tmp_path / "file" / "probes")
    assert parse_estimate(result) == PROBE


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert estimate_cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "fmfsd" / "probe"
    assert (
        estimate_cache_dir(home)
        == estimate_cache_dir({**home, "XDG_CACHE_HOME": "here"})
        == tmp_path / ".cache/fmfsd/probe"
    )


@pytest.mark.usefixtures("processes")
def test_a_cached_probe_needs_no_torch(tmp_path: Path) -> None:
    arguments = ("probe", "smoke", "--set", "train.batch=64", "--workers", "2")
    caches = {"XDG_CACHE_HOME": str(tmp_path / "caches")}
    first = run_command("fmfsd", *arguments, "--json", cwd=tmp_path, env=caches)
    assert first.returncode == 0, first.stderr
    assert [head["name"] for head in json.loads(first.stdout)["heads"]] == ["branch1", "fused", "deepest"]
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "torch.py").write_text("raise ImportError('torch was imported')")
    path = os.pathsep.join(filter(None, [str(tmp_path / "no"), os.environ.get("PYTHONPATH")]))
    without_torch = {**caches, "PYTHONPATH": path}
    again = run_command("fmfsd", *arguments, "--json", cwd=tmp_path, env=without_torch)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    table = run_command("fmfsd", *arguments, cwd=tmp_path, env=without_torch)
    assert "fused map 32x16x16 > sepconv 64 /2 > fused with stage3" in " ".join(table.stdout.split())
    other = run_command("fmfsd", *arguments, "--set", "train.batch=128", cwd=tmp_path, env=without_torch)
    assert (other.returncode, "torch was imported" in other.stderr) == (1, True)
