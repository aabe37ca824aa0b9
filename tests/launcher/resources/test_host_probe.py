"""Probing hosts: real agents on this machine, some of which see other files or import other code."""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

import launcher
from fmfsd.errors import CheckError
from fmfsd.system.atomic_files import sha256
from launcher.agent.available_resources import Resources
from launcher.agent.hardware_record import read_hardware
from launcher.check import host_checks
from launcher.config.launch_config import LaunchConfig
from launcher.resources import host_probe as survey_module
from launcher.resources.host_probe import HostProbe, probe_hosts, query_hosts
from launcher.resources.site import Site
from launcher.transport import agent_client
from launcher.transport.agent_client import AgentProcess
from tests.helpers.processes import start_launch, wait_until
from tests.helpers.sites import LocalhostSite, agent_hiding_folder, agent_with_checkout, localhost_site

pytestmark = pytest.mark.usefixtures("processes")


def run_probe(site: LocalhostSite, tmp_path: Path, index: Path | None = None) -> HostProbe:
    return probe_hosts(site, os.environ, run=tmp_path / "runs" / "one", cwd=str(tmp_path), index=index)


def problem_texts(result: HostProbe) -> list[str]:
    return list(map(str, host_checks.check_hosts(LaunchConfig(), result)))


def test_each_host_reports_its_hardware_software_and_files(data_root: Path, tmp_path: Path) -> None:
    index = data_root / "cifar10" / "index.json"
    result = run_probe(localhost_site(), tmp_path, index)
    assert (list(result.answers), result.failures) == (["n1", "n2"], {})
    answer = result.answers["n2"]
    assert answer["python"] == sys.version.split()[0]
    assert answer["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (answer["cwd"], answer["marker"], answer["parent"], answer["index"]) == (True, True, True, sha256(index))
    assert answer["cores"] == Resources.detect(os.environ).cores
    assert answer["source"] == result.here["source"]
    assert "lo" in answer["interfaces"]
    assert result.hardware == {"n1": read_hardware(), "n2": read_hardware()}
    assert read_hardware()["cores"] == os.cpu_count()
    assert read_hardware()["cpu"]
    assert abs(answer["clock_s"]) < 1e-3
    assert problem_texts(result) == []


def test_probing_hosts_leaves_no_files(tmp_path: Path) -> None:
    run_probe(localhost_site(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_resources_of_a_site_are_the_minimum_of_its_hosts(tmp_path: Path) -> None:
    here = Resources.detect(os.environ)
    site = run_probe(localhost_site(), tmp_path).apply_to(localhost_site())
    assert site.resources == Resources(here.cores, memory=here.memory)
    in_job = run_probe(localhost_site(), tmp_path).apply_to(Site(Resources(cores=1), "srun", ("n1", "n2")))
    assert in_job.resources.cores == 1
    one, other = Resources(8, ("4", "5"), 64, 80), Resources(4, ("0",), 128, 40)
    assert Resources.minimum([one, other]) == Resources(4, ("0",), 64, 40)
    assert Resources.minimum([one, Resources(4)]).gpu_memory == 80


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_a_host_that_does_not_share_the_runs_folder_is_named(tmp_path: Path) -> None:
    result = run_probe(localhost_site(n2=agent_hiding_folder(tmp_path)), tmp_path)
    (problem,) = problem_texts(result)
    assert problem.startswith(
        f"n2: does not see a file that was just written in {tmp_path}: several machines have to share"
    )


@pytest.mark.fault("F45")
def test_a_host_with_another_checkout_is_named(tmp_path: Path) -> None:
    checkout = Path(launcher.__file__).parents[1]
    for package in ("fmfsd", "launcher"):
        shutil.copytree(checkout / package, tmp_path / "other" / package)
    assert problem_texts(run_probe(localhost_site(n2=agent_with_checkout(tmp_path / "other")), tmp_path)) == []
    with (tmp_path / "other" / "fmfsd" / "distributed" / "collectives.py").open("a") as file:
        file.write("# changed\n")
    (problem,) = problem_texts(run_probe(localhost_site(n2=agent_with_checkout(tmp_path / "other")), tmp_path))
    assert problem.startswith("code of fmfsd: not the same everywhere: sum ")
    assert ", n1; sum " in problem
    assert " on n2: " in problem


@pytest.mark.fault("F45")
def test_workers_that_would_import_other_files_than_the_check_are_refused(tmp_path: Path) -> None:
    """On this machine and on hosts, using the Python of a worker with all its variables."""
    checkout = Path(launcher.__file__).parents[1]
    for package in ("fmfsd", "launcher"):
        shutil.copytree(checkout / package, tmp_path / "other" / package)
    run, cwd = tmp_path / "runs" / "one", str(tmp_path)
    for site, hosts in ((Site(Resources(cores=1)), ["this machine"]), (localhost_site(), ["n1", "n2"])):
        probe_with = partial(probe_hosts, site, os.environ, run=run, cwd=cwd, index=None)
        assert problem_texts(probe_with(variables={"PATH": os.environ["PATH"]})) == []
        problems = problem_texts(probe_with(variables={"PYTHONPATH": str(tmp_path / "other")}))
        assert [line.partition(",")[0] for line in problems] == [
            f"{host}: workers would import fmfsd from {tmp_path}/other/fmfsd/__init__.py" for host in hosts
        ]


def test_workers_whose_python_does_not_start_are_refused_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="(?s)this machine: a worker's Python did not start: .*no-such-place"):
        probe_hosts(
            Site(Resources(cores=1)),
            os.environ,
            run=tmp_path / "one",
            cwd=str(tmp_path),
            index=None,
            variables={"PYTHONHOME": "/no-such-place"},
        )


def test_unreachable_hosts_are_named_with_the_error_of_the_connection(tmp_path: Path) -> None:
    lost = ("sh", "-c", "echo Warning >&2; echo no route to host >&2; exit 255")
    assert run_probe(localhost_site(n1=lost, n2=("no-such-program",)), tmp_path).failures == {
        "n1": "no agent could be started there: Warning / no route to host",
        "n2": "can't be reached: [Errno 2] No such file or directory: 'no-such-program'",
    }
    assert list(run_probe(localhost_site(n1=lost), tmp_path).answers) == ["n2"]


def test_waiting_for_a_silent_host_has_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(agent_client, "END_TIMEOUT_S", 0.1)
    result = query_hosts(("n1",), lambda _: AgentProcess(("sleep", "60"), deadline_s=60))
    assert result.failures == {"n1": "no answer in 0.2 s"}


def test_a_host_whose_shell_waits_for_input_is_reported_with_what_it_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "ANSWER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(agent_client, "END_TIMEOUT_S", 0.1)
    result = query_hosts(
        ("n1",), lambda _: AgentProcess(("sh", "-c", "printf 'Project? '; exec sleep 60"), deadline_s=60)
    )
    assert result.failures == {"n1": "no answer in 1 s; it printed: Project?"}


@pytest.mark.fault("F32")
@pytest.mark.parametrize(("theirs", "ahead_s"), [(100.0, 0.0), (103.0, 0.0), (110.0, 6.0), (90.0, -10.0)])
def test_clocks_are_compared_within_the_round_trip_time(theirs: float, ahead_s: float) -> None:
    assert survey_module._clock_ahead_s(theirs, sent_at=100.0, received_at=104.0) == ahead_s


def test_a_launch_that_is_terminated_while_probing_hosts_leaves_nothing(tmp_path: Path) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexec cat\n")  # prints nothing, and exits at the end of its input, like ssh
    ssh.chmod(0o700)
    env = {"PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    with start_launch(tmp_path, "run", ("smoke", "--hosts", "a,b", "--device", "cpu"), env) as run:
        children = psutil.Process(run.process.pid).children
        wait_until(lambda: [child.name() for child in children()] == ["cat", "cat"], "a connection to each host")
        run.signal(signal.SIGTERM)
        code, output = run.wait_for_end()
    assert (code, "Traceback" in output) == (128 + signal.SIGTERM, False)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
