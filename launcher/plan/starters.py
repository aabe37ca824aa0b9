"""Starters of a node's workers: torchrun, DeepSpeed's single-node launcher, or the agent itself."""

import base64
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.config.launch_config import Starter
from launcher.plan.placeholders import ADDRESS, PORT, RENDEZVOUS, RUN_ID, SCRATCH

JOIN_TIMEOUT_S = 120
KEEP_ALIVE_INTERVAL_S = 60
"""Interval of torchrun's keep-alive messages, which make the rendezvous file grow and which the agents do not need."""
TORCHRUN, DEEPSPEED = "torch.distributed.run", "deepspeed.launcher.launch"


@dataclass(frozen=True)
class NodeWorkers:
    """The workers of one `node`; each runs `python -m` with the arguments `worker`, on `device`.

    `gpus`: for each node, one GPU name per worker, on the CPU too. `uses_file_rendezvous`: the nodes use a file for the
    rendezvous, else an address of the first node. `grace_s`: the time that workers get to stop.
    """

    node: int
    worker: tuple[str, ...]
    device: str
    gpus: tuple[tuple[str, ...], ...]
    uses_file_rendezvous: bool
    grace_s: float


@dataclass(frozen=True)
class StartCommand:
    """A complete command and the variables that it needs in addition to those of every worker.

    `workers`: the variables of each worker if the command is a worker; empty if it starts the workers.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    workers: tuple[Mapping[str, str], ...] = ()


def build_start_command(starter: Starter, crew: NodeWorkers) -> StartCommand:
    """Return the command by which `starter` starts the workers."""
    return _STARTERS[starter](crew)


def _torchrun(crew: NodeWorkers) -> StartCommand:
    """Return a torchrun command without restarts: a restart is a new attempt."""
    options = {
        "--nnodes": str(len(crew.gpus)),
        "--nproc-per-node": str(len(crew.gpus[crew.node])),
        **(_file_rendezvous_options(crew.node) if crew.uses_file_rendezvous else _static_rendezvous_options(crew.node)),
        "--rdzv-id": RUN_ID,
        "--max-restarts": "0",
        "--log-dir": SCRATCH,
    }
    argv = (*_PYTHON, "-m", TORCHRUN, *_flatten(options), "-m", *crew.worker)
    # torch 2.11 does not have the command line option
    return StartCommand(argv, {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(crew.grace_s))})


def _deepspeed(crew: NodeWorkers) -> StartCommand:
    """Return a command of DeepSpeed's launcher.

    It finds its node by position in a mapping of node names, which must differ also for nodes on one machine. It opens
    no rendezvous: at an address, the first worker does.
    """
    world = {f"node-{node}": gpus for node, gpus in enumerate(crew.gpus)}
    options = {
        "--node_rank": str(crew.node),
        **({} if crew.uses_file_rendezvous else {"--master_addr": ADDRESS, "--master_port": PORT}),
        "--world_info": base64.urlsafe_b64encode(json.dumps(world).encode()).decode(),
    }
    argv = (*_PYTHON, "-m", DEEPSPEED, *_flatten(options), "--no_local_rank", "--module", *crew.worker)
    return StartCommand(argv, {"DS_ACCELERATOR": crew.device})


def _direct(crew: NodeWorkers) -> StartCommand:
    """Return the workers' command, started by the agent with the variables that torchrun would set.

    Without torchrun's store, the first worker opens its own at MASTER_ADDR.
    """
    num_nodes, local_size = len(crew.gpus), len(crew.gpus[crew.node])
    world_size = num_nodes * local_size
    address = {} if crew.uses_file_rendezvous else {"MASTER_ADDR": ADDRESS, "MASTER_PORT": PORT}
    common_env = {
        "FMFSD_STARTER": "direct",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "GROUP_RANK": str(crew.node),
        "GROUP_WORLD_SIZE": str(num_nodes),
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": str(world_size),
        "TORCHELASTIC_RUN_ID": RUN_ID,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        **address,
    }
    ranks = ((local_rank, str(crew.node * local_size + local_rank)) for local_rank in range(local_size))
    worker_envs = tuple({"LOCAL_RANK": str(local_rank), "RANK": rank, "ROLE_RANK": rank} for local_rank, rank in ranks)
    return StartCommand((*_PYTHON, "-m", *crew.worker), common_env, worker_envs)


def _file_rendezvous_options(node: int) -> dict[str, str]:
    """Return torchrun's options for a rendezvous by file, with which nothing listens outside loopback.

    torchrun numbers the nodes by sorting their addresses, so each node gets its own loopback address, in order.
    """
    return {
        "--rdzv-backend": "c10d",
        "--rdzv-conf": f"store_type=file,join_timeout={JOIN_TIMEOUT_S},keep_alive_interval={KEEP_ALIVE_INTERVAL_S}",
        "--rdzv-endpoint": RENDEZVOUS,
        "--local-addr": f"127.0.{1 + node // 100}.{100 + node % 100}",
    }


def _static_rendezvous_options(node: int) -> dict[str, str]:
    """Return torchrun's options for a static rendezvous at an address.

    torch's c10d backend would hang when a network link fails, and unpickles data from any sender.
    """
    return {
        "--rdzv-backend": "static",
        "--rdzv-conf": f"timeout={JOIN_TIMEOUT_S}",
        "--master-addr": ADDRESS,
        "--master-port": PORT,
        "--node-rank": str(node),
    }


def _flatten(options: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part for option in options.items() for part in option)


_PYTHON = (sys.executable, "-P")
_STARTERS: Mapping[Starter, Callable[[NodeWorkers], StartCommand]] = {
    "torchrun": _torchrun,
    "deepspeed": _deepspeed,
    "direct": _direct,
}
