"""Launch plans: byte-stable rendering, complete environments, no secrets shown."""

import base64
import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from fmfsd.distributed.world import World
from fmfsd.errors import ConfigError
from fmfsd.run.run_dir import RunDir
from launcher.agent.available_resources import Resources
from launcher.agent.visible_gpus import list_visible_gpus
from launcher.config.environment import forwarded_variables, mask_passwords, mask_secret, parse_env_options
from launcher.config.launch_config import LaunchConfig
from launcher.plan.launch_plan import LaunchPlan, plan_run
from launcher.plan.placeholders import ADDRESS, INIT_METHOD, PORT
from launcher.resources.site import Site

GOLDEN = Path(__file__).parents[2] / "golden"
ENVIRONMENT = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "SHELL": "/bin/bash",
    "NCCL_DEBUG": "INFO",
    "AWS_SECRET_ACCESS_KEY": "x",
}


EIGHT_CORES = Resources(cores=8, core_numbers=(0, 1, 2, 3, 8, 9, 10, 12))
FOUR_GPUS = Resources(cores=64, gpus=("4", "5", "6", "7"))


def plan(launch: LaunchConfig, resources: Resources, run_dir: str = "/runs/one") -> LaunchPlan:
    prepare = (sys.executable, "-m", "fmfsd", "data", "prepare", "cifar100", "--out", "/data")
    return plan_run(
        launch, Site(resources), RunDir(Path(run_dir)), environment=ENVIRONMENT, cwd="/work here", prepare=prepare
    )


@pytest.mark.parametrize(
    ("name", "launch", "resources"),
    [
        ("two-nodes-on-the-cpu", LaunchConfig(nodes=2, gpus=1), EIGHT_CORES),
        ("two-nodes-of-two-gpus", LaunchConfig(nodes=2, grace_s=90), FOUR_GPUS),
        ("two-nodes-by-deepspeed", LaunchConfig(nodes=2, starter="deepspeed"), FOUR_GPUS),
        ("two-nodes-without-a-starter", LaunchConfig(nodes=2, starter="direct"), FOUR_GPUS),
    ],
)
def test_plans_are_byte_stable(name: str, launch: LaunchConfig, resources: Resources) -> None:
    result = plan(launch, resources)
    text = f"{result.render()}\n\n{result.to_json()}".replace(sys.executable, "PYTHON")
    assert text == (GOLDEN / f"{name}.txt").read_text()


def test_with_the_direct_starter_each_worker_gets_the_variables_of_its_rank() -> None:
    """On one machine the rendezvous is a file, on several the address of the first."""
    launch = LaunchConfig(nodes=2, gpus=2, device="cpu", starter="direct")
    for result in (
        plan(launch, Resources(cores=2)),
        plan_run(
            launch, Site(Resources(8), "ssh", ("a", "b")), RunDir(Path("/r")), environment=ENVIRONMENT, cwd="/work"
        ),
    ):
        worlds = [World.from_environment({**node.env, **own}) for node in result.nodes for own in node.workers]
        assert [(world.rank, world.size) for world in worlds] == [(rank, 4) for rank in range(4)]
        assert [(world.node, world.local_rank, world.local_size) for world in worlds] == [
            (node, local_rank, 2) for node in range(2) for local_rank in range(2)
        ]
        at_a_file = result.rendezvous_place == "file here"
        assert {world.init_method for world in worlds} == {INIT_METHOD if at_a_file else "env://"}
        assert {node.env.get("MASTER_ADDR") for node in result.nodes} == {None if at_a_file else ADDRESS}
        assert {node.env.get("MASTER_PORT") for node in result.nodes} == {None if at_a_file else PORT}


def world_infos(launch_plan: LaunchPlan) -> list[dict[str, list[str]]]:
    """Return the decoded --world_info of each node's DeepSpeed launcher."""
    encoded = [node.argv[node.argv.index("--world_info") + 1] for node in launch_plan.nodes]
    return [json.loads(base64.urlsafe_b64decode(text)) for text in encoded]


def test_deepspeeds_world_info_has_the_gpus_of_each_node_or_consecutive_numbers() -> None:
    sliced, numbered = {"node-0": ["4", "5"], "node-1": ["6", "7"]}, {"node-0": ["0", "1"], "node-1": ["0", "1"]}
    launch = LaunchConfig(nodes=2, gpus=2, starter="deepspeed")
    assert world_infos(plan(launch, FOUR_GPUS)) == [sliced] * 2
    assert world_infos(plan(replace(launch, device="cpu"), FOUR_GPUS)) == [numbered] * 2
    hosts = Site(Resources(8, ("0", "1")), "ssh", ("a", "b"))
    on_hosts = plan_run(launch, hosts, RunDir(Path("/runs/one")), environment=ENVIRONMENT, cwd="/work")
    assert world_infos(on_hosts) == [numbered] * 2
    (rest,) = world_infos(
        plan_run(launch, Site(FOUR_GPUS), RunDir(Path("/r")), [1], environment=ENVIRONMENT, cwd="/work")
    )
    assert rest == {"node-0": ["6", "7"]}


def test_deepspeeds_rendezvous_is_an_address_of_the_first_host() -> None:
    hosts = Site(Resources(8, ("0", "1")), "ssh", ("a", "b"))
    launch = LaunchConfig(nodes=2, gpus=2, starter="deepspeed")
    for node in plan_run(launch, hosts, RunDir(Path("/runs/one")), environment=ENVIRONMENT, cwd="/work").nodes:
        filled = node.fill_placeholders({ADDRESS: "10.0.0.1", PORT: "4242"})
        assert " --master_addr 10.0.0.1 --master_port 4242 " in shlex.join(filled.argv)
        assert "FMFSD_INIT_METHOD" not in filled.env


def test_an_agent_in_a_ray_actor_gets_no_core_list() -> None:
    """Ray allocates cores, and several trials may share a machine."""
    site = Site(Resources(cores=2), "ray", ("n1", "n2"))
    launch = LaunchConfig(nodes=2, gpus=2, device="cpu")
    result = plan_run(launch, site, RunDir(Path("/runs/one")), environment=ENVIRONMENT, cwd="/work here")
    assert [node.host for node in result.nodes] == ["n1", "n2"]
    assert result.rendezvous_place == "address"
    assert [("FMFSD_CORES" in node.env, node.env["OMP_NUM_THREADS"]) for node in result.nodes] == [(False, "1")] * 2


def test_only_placeholders_are_filled() -> None:
    launch = LaunchConfig(extra_env={"MINE": "{id} and {attempt}"})
    (node,) = plan(launch, Resources(cores=2), run_dir="/runs/{id} {x}").nodes
    filled = node.fill_placeholders(
        {"{id}": "abc", "{attempt}": "7", "{rendezvous}": "/s/r", "{init_method}": "file:///s/w"}
    )
    assert filled.argv[filled.argv.index("--rdzv-id") + 1] == "abc"
    assert filled.argv[filled.argv.index("--rdzv-endpoint") + 1] == "/s/r"
    assert "/runs/{id} {x}" in filled.argv
    assert (filled.env["FMFSD_ATTEMPT"], filled.env["FMFSD_INIT_METHOD"]) == ("7", "file:///s/w")
    assert filled.env["MINE"] == "{id} and {attempt}"


@pytest.mark.parametrize("name", ["with space", "a'b", 'a"b', "$(touch x)", "`x`", "a;b", "ü", "-x"])
def test_a_rendered_plan_is_a_valid_shell_command_for_any_name(name: str) -> None:
    result = plan(LaunchConfig(extra_env={"MINE": name}), Resources(cores=2), run_dir=f"/runs/{name}")
    arguments = shlex.split(result.render().split("env -i", 1)[1])
    assert f"/runs/{name}" in arguments
    assert f"MINE={name}" in arguments


def test_node_addresses_sort_in_node_order() -> None:
    """torchrun assigns node ranks by sorted address."""
    result = plan(LaunchConfig(nodes=256, gpus=1), Resources(cores=2))
    addresses = [node.argv[node.argv.index("--local-addr") + 1] for node in result.nodes]
    assert addresses == sorted(addresses)
    assert len(set(addresses)) == 256
    assert all(address.startswith("127.") for address in addresses)


@pytest.mark.parametrize(
    ("launch", "gpus", "expected"),
    [
        (LaunchConfig(), (), ("cpu", 1)),
        (LaunchConfig(nodes=2), (), ("cpu", 1)),
        (LaunchConfig(gpus=4), (), ("cpu", 4)),
        (LaunchConfig(), ("0", "1", "2"), ("cuda", 3)),
        (LaunchConfig(nodes=2), ("0", "1", "2", "3"), ("cuda", 2)),
        (LaunchConfig(device="cpu"), ("0", "1"), ("cpu", 1)),
        (LaunchConfig(gpus=1), ("0", "1"), ("cuda", 1)),
    ],
)
def test_there_is_a_worker_per_visible_gpu_or_one_on_the_cpu(
    launch: LaunchConfig, gpus: tuple[str, ...], expected: tuple[str, int]
) -> None:
    assert Site(Resources(cores=4, gpus=gpus)).placement(launch) == expected


def test_cores_are_divided_among_workers() -> None:
    result = plan(LaunchConfig(nodes=2, gpus=2), Resources(cores=9))
    assert {node.env["OMP_NUM_THREADS"] for node in result.nodes} == {"2"}
    assert plan(LaunchConfig(gpus=8), Resources(cores=2)).nodes[0].env["OMP_NUM_THREADS"] == "1"


def test_the_callers_omp_num_threads_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "OMP_NUM_THREADS", "3")
    assert plan(LaunchConfig(nodes=2), Resources(cores=16)).nodes[1].env["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("launch", "resources", "expected"),
    [
        (LaunchConfig(nodes=2, gpus=4), EIGHT_CORES, ["0-3", "8-10,12"]),
        (LaunchConfig(nodes=3, gpus=2), EIGHT_CORES, ["0-1", "2-3", "8-9"]),
        (LaunchConfig(), EIGHT_CORES, ["0-3,8-10,12"]),
        (LaunchConfig(nodes=2, gpus=5), EIGHT_CORES, [None, None]),  # fewer cores than workers
        (LaunchConfig(nodes=2, gpus=4), replace(EIGHT_CORES, cores=4), [None, None]),  # a container with fewer
        (LaunchConfig(nodes=2), Resources(8, ("0", "1"), core_numbers=tuple(range(8))), [None, None]),  # GPUs
    ],
)
def test_each_local_node_has_its_own_cores(
    launch: LaunchConfig, resources: Resources, expected: list[str | None]
) -> None:
    assert [node.env.get("FMFSD_CORES") for node in plan(launch, resources).nodes] == expected


def test_on_other_machines_workers_share_all_cores() -> None:
    def cores(reach: Literal["ssh", "srun"], device: Literal["cpu", "cuda"], each: int) -> set[str | None]:
        site = Site(Resources(each, ("0", "1")), reach, ("a", "b"))
        launch = LaunchConfig(nodes=2, gpus=2, device=device)
        result = plan_run(launch, site, RunDir(Path("/runs/one")), environment=ENVIRONMENT, cwd="/work")
        return {node.env.get("FMFSD_CORES") for node in result.nodes}

    assert cores("ssh", "cpu", 8) == cores("srun", "cpu", 2) == {"all"}
    assert cores("ssh", "cuda", 8) == cores("srun", "cpu", 1) == {None}


@pytest.mark.parametrize(
    "name", ["OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "GOMP_CPU_AFFINITY"]
)
def test_users_thread_settings_disable_our_core_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_option = plan(LaunchConfig(extra_env={name: "1"}), EIGHT_CORES).nodes[0].env
    monkeypatch.setitem(ENVIRONMENT, name, "1")
    for env in (by_option, plan(LaunchConfig(), EIGHT_CORES).nodes[0].env):
        assert (env[name], "FMFSD_CORES" in env) == ("1", False)


def test_the_core_numbers_are_those_of_the_process_affinity() -> None:
    assert Resources.detect({}).core_numbers == tuple(sorted(os.sched_getaffinity(0)))


UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("2,0", ("2", "0")),
        ("1,7,0", ("1",)),
        ("GPU-bbbb", ("GPU-bbbb",)),
        ("-1", ()),
        (" 0 , 1 ", ("0", "1")),
        ("MIG-5a1b, MIG-77", ("MIG-5a1b",)),
        ("0,0", ()),
        ("0,1,0", ()),
        ("GPU-aaaa,0", ()),
        ("GPU", ()),
        ("GPU-", ()),
        ("1,GPU,0", ("1",)),
        ("0,,1", ("0",)),
        ("1.5", ()),
        ("NoDevFiles", ()),
    ],
)
def test_visible_gpus_are_those_that_cuda_would_use(chosen: str | None, expected: tuple[str, ...]) -> None:
    assert list_visible_gpus(UUIDS, chosen) == expected


def test_only_listed_variables_are_passed_on() -> None:
    passed = forwarded_variables(
        {**ENVIRONMENT, "OMP_PROC_BIND": "1", "PYTORCH_ALLOC_CONF": "", "WANDB_API_KEY": "s", "LS_COLORS": "x"}
    )
    assert set(passed) == {"PATH", "HOME", "NCCL_DEBUG", "OMP_PROC_BIND", "PYTORCH_ALLOC_CONF"}


def test_workers_get_the_python_proxy_and_hub_settings_of_the_launcher() -> None:
    """Secrets are passed by `--env` only; variables of one W&B run are not passed on."""
    settings = {
        "PYTHONNOUSERSITE": "1",
        "PYTHONUSERBASE": "/opt/me",
        "PYTHONUTF8": "1",
        "LC_CTYPE": "C.UTF-8",
        "SSL_CERT_DIR": "/etc/certs",
        "REQUESTS_CA_BUNDLE": "/etc/ca.pem",
        "all_proxy": "socks5://proxy:1080",
        "https_proxy": "http://proxy:3128",
        "HF_HOME": "/srv/hf",
        "HF_HUB_ETAG_TIMEOUT": "30",
        "HF_TOKEN_PATH": "/srv/hf/token",
        "WANDB_HTTP_TIMEOUT": "60",
        "WANDB_PROJECT": "p",
    }
    others = {
        "HF_TOKEN": "s",
        "WANDB_API_KEY": "s",
        "WANDB_RUN_ID": "abc",
        "WANDB_SERVICE": "2-1-tcp",
        "PYTHONINSPECT": "1",
    }
    assert forwarded_variables({**settings, **others}) == settings


def test_further_variables_are_passed_by_name() -> None:
    assert parse_env_options(["A", "B=2=3", "C="], {"A": "1"}) == {"A": "1", "B": "2=3", "C": ""}
    with pytest.raises(ConfigError, match="--env A: not set here"):
        parse_env_options(["A"], {})
    with pytest.raises(ConfigError, match="'A B' is not a valid variable name") as caught:
        parse_env_options(["A B=canary"], {})
    assert "canary" not in str(caught.value)
    with pytest.raises(ConfigError, match="--env FMFSD_ATTEMPT: reserved: the launcher sets it for each worker"):
        parse_env_options(["FMFSD_ATTEMPT=9"], {})


def test_secrets_are_masked_in_output_but_passed_to_workers() -> None:
    secrets = {
        "WANDB_API_KEY": "canary",
        "HF_TOKEN": "canary",
        "my_password": "canary",
        "PROXY": "http://me:canary@host/",
    }
    result = plan(LaunchConfig(extra_env=secrets), Resources(cores=2))
    assert "canary" not in result.render()
    assert "canary" not in result.to_json()
    assert result.nodes[0].env["HF_TOKEN"] == "canary"
    assert json.loads(result.to_json())["nodes"][0]["env"]["PROXY"] == "http://me:***@host/"


def test_passwords_in_addresses_are_masked() -> None:
    """Masked up to the last @: a hidden host is better than half a password."""
    assert mask_passwords("https://user:pass@host:1/x?a=b") == "https://user:***@host:1/x?a=b"
    assert mask_passwords("postgres://user:p@ss/w@host") == "postgres://user:***@host"
    assert mask_passwords("https://ghp_token@host/x and more") == "https://***@host/x and more"
    assert mask_passwords("git@host:x http://host:80/y") == "git@host:x http://host:80/y"
    assert mask_secret("URL", "https://host/x") == "https://host/x"
