"""Fixtures: two hosts with an sshd each."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fmfsd.run.run_dir import RunDir
from tests.helpers.cluster import Cluster, cluster_skip_reason, hosts_up
from tests.helpers.launches import small_arguments
from tests.helpers.runs import SMALL, make_run, tiny_config, train_run
from tests.helpers.workers import run_workers


@pytest.fixture(scope="session")
def hosts() -> Iterator[Cluster]:
    if reason := cluster_skip_reason(ssh=True):
        pytest.skip(reason)
    with hosts_up(nodes=2, gpus=0, sshd=1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def arguments(tiny_root: Path) -> tuple[str, ...]:
    return small_arguments(tiny_root)


@pytest.fixture(scope="session")
def whole(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Return an uninterrupted run of two workers on this machine."""
    run = make_run(tmp_path_factory.mktemp("whole") / "run", tiny_config(tiny_root, *SMALL))
    run_workers(train_run, 2, run.path)
    return run


@pytest.fixture
def address(hosts: Cluster) -> str:
    """Return the address of n1; all hosts share its first three numbers."""
    lines = (hosts.folder / "hosts").read_text().splitlines()
    return next(line.split()[0] for line in lines if line.endswith(" n1"))


@pytest.fixture
def path_with_config(hosts: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a config that `ssh` reads instead of that of the hosts."""
    config, program = tmp_path / "config", tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F "{config}" "$@"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return config


def ssh_config(hosts: Cluster, *sections: str) -> str:
    """Return an ssh config: `sections`, then the keys and settings of the hosts."""
    return "\n".join((*sections, (hosts.folder / "ssh" / "ssh_config").read_text()))


@contextmanager
def bind_mount(hosts: Cluster, host: str, source: Path, target: str) -> Iterator[None]:
    hosts.run_on(host, "mount", "--bind", str(source), target)
    try:
        yield
    finally:
        hosts.run_on(host, "umount", "--lazy", target)


@pytest.fixture
def unknown_names(hosts: Cluster, address: str, path_with_config: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Yield names of n1 and n2 that only the ssh config knows, for their second addresses; hosts resolve no names."""
    network, names = address.rpartition(".")[0], ("first", "second")
    addresses = {"n1": f"{network}.101", "n2": f"{network}.102"}
    sections = (f"Host {name}\n  HostName {own}" for name, own in zip(names, addresses.values(), strict=True))
    path_with_config.write_text(ssh_config(hosts, *sections))
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    with ExitStack() as stack:
        for host, own in addresses.items():
            stack.enter_context(bind_mount(hosts, host, tmp_path / "hosts", "/etc/hosts"))
            hosts.run_on(host, "ip", "addr", "add", f"{own}/24", "dev", "eth0")
            stack.callback(hosts.run_on, host, "ip", "addr", "del", f"{own}/24", "dev", "eth0")
        yield names
