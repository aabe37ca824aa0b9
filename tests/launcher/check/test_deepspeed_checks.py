"""Checks of DeepSpeed: installed, the same version on all hosts, a tested release."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from fmfsd.system.atomic_files import write_json
from launcher.agent.describe_machine import probe_machine
from launcher.check.launch_checks import find_warnings
from launcher.config.launch_config import LaunchConfig
from launcher.resources.host_probe import HostProbe
from tests.helpers.checks import CPU_SITE, assert_no_problems, run_failing_checks
from tests.helpers.runs import make_run, tiny_config

BY_DEEPSPEED = LaunchConfig(starter="deepspeed")
VERSIONS = {"here": "0.19.8", "n1": "0.19.7", "n2": None}


def install(monkeypatch: pytest.MonkeyPatch, release: str | None) -> None:
    """Fake an installed DeepSpeed `release`; None: not installed."""

    def version(package: str) -> str:
        if release is None:
            raise PackageNotFoundError(package)
        return release

    monkeypatch.setattr("launcher.check.deepspeed_checks.version", version)


def test_a_missing_deepspeed_names_the_extra_to_install(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    code, text = run_failing_checks(tiny_config(data_root), BY_DEEPSPEED)
    assert (code, "deepspeed: not installed in this environment: pip install 'fmfsd[deepspeed]'" in text) == (3, True)
    assert_no_problems(tiny_config(data_root))


def test_another_deepspeed_on_a_host_is_refused(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "0.19.8")
    answer = {**probe_machine({}, {}), "clock_s": 0.0}
    hosts = {name: {**answer, "versions": {**answer["versions"], "deepspeed": each}} for name, each in VERSIONS.items()}
    probed = HostProbe({"n1": hosts["n1"], "n2": hosts["n2"]}, here=hosts["here"])
    code, text = run_failing_checks(tiny_config(data_root), BY_DEEPSPEED, host_probe=probed)
    assert (code, "; 0.19.7 on n1; none on n2: use one environment" in text) == (3, True), text
    assert "deepspeed: " not in run_failing_checks(tiny_config(data_root), host_probe=probed)[1]


@pytest.mark.parametrize(("grace_s", "refused"), [(30.0, False), (30.5, True)])
def test_more_grace_than_deepspeeds_launcher_leaves_is_refused(
    grace_s: float, refused: bool, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "0.19.8")
    launch = LaunchConfig(starter="deepspeed", grace_s=grace_s)
    if not refused:
        assert_no_problems(tiny_config(data_root), launch)
        return
    code, text = run_failing_checks(tiny_config(data_root), launch)
    assert code == 2
    assert "--grace 30.5, --starter deepspeed: DeepSpeed's launcher kills workers 30 s after TERM" in text


@pytest.mark.parametrize(("release", "expected"), [("0.19.0", False), ("0.20.1", True), ("1.19.0", True)])
def test_an_untested_release_is_a_single_warning(
    release: str, expected: bool, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, release)
    config = tiny_config(data_root)
    messages = find_warnings(config, BY_DEEPSPEED, CPU_SITE, make_run(tmp_path / "run", config))
    assert sum(f"deepspeed {release} is untested" in text for text in messages) == expected
    assert not [
        text
        for text in find_warnings(config, LaunchConfig(), CPU_SITE, make_run(tmp_path / "r", config))
        if release in text
    ]


def test_a_run_whose_stop_takes_longer_is_advised_to_use_torchrun(data_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data_root)
    run = make_run(tmp_path / "run", config)
    write_json(run.rank_progress(0), {"stop_takes_s": 30.5})
    assert [
        text
        for text in find_warnings(config, BY_DEEPSPEED, CPU_SITE, run)
        if text.endswith("61 and --starter torchrun")
    ]
