"""What a node's agent starts: torchrun or DeepSpeed's launcher of one node, which start the workers, or these."""

import base64
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.config.launch_config import Starter
from launcher.plan.placeholders import ADDRESS, PORT, RENDEZVOUS, RUN_ID, SCRATCH

JOIN_TIMEOUT_S = 120
KEEP_ALIVE_S = 60
"""How often a torchrun tells the others that it lives, which makes their file grow; our agents know it anyway."""
TORCHRUN, DEEPSPEED = "torch.distributed.run", "deepspeed.launcher.launch"


@dataclass(frozen=True)
class Crew:
    """The workers of one `node`: each is `python -m` with the words of `worker`, on `device`.

    `gpus` are names of GPUs for each of the nodes, as many as it has workers, on the CPU too. The nodes meet
    `at_a_file`, or at an address of the first. They have `grace_s` seconds for a stop.
    """

    node: int
    worker: tuple[str, ...]
    device: str
    gpus: tuple[tuple[str, ...], ...]
    at_a_file: bool
    grace_s: float


@dataclass(frozen=True)
class Start:
    """A whole command, and the variables that it needs in addition to those that every worker gets.

    `workers` has the variables of each worker, if the command is a worker's own; else it starts them.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    workers: tuple[Mapping[str, str], ...] = ()


def start_of(starter: Starter, crew: Crew) -> Start:
    return _STARTERS[starter](crew)


def _torchrun(crew: Crew) -> Start:
    """Without restarts of its own: a restart is a new attempt."""
    options = {
        "--nnodes": str(len(crew.gpus)),
        "--nproc-per-node": str(len(crew.gpus[crew.node])),
        **(_meeting_at_a_file(crew.node) if crew.at_a_file else _meeting_at_an_address(crew.node)),
        "--rdzv-id": RUN_ID,
        "--max-restarts": "0",
        "--log-dir": SCRATCH,
    }
    argv = (*_PYTHON, "-m", TORCHRUN, *_flat(options), "-m", *crew.worker)
    # the option is unknown to torch 2.11
    return Start(argv, {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(crew.grace_s))})


def _deepspeed(crew: Crew) -> Start:
    """It knows nodes by their place in a mapping, which needs names that differ, also of nodes on one machine.

    It opens no meeting place: at an address that is the first worker's own to do.
    """
    world = {f"node-{node}": gpus for node, gpus in enumerate(crew.gpus)}
    options = {
        "--node_rank": str(crew.node),
        **({} if crew.at_a_file else {"--master_addr": ADDRESS, "--master_port": PORT}),
        "--world_info": base64.urlsafe_b64encode(json.dumps(world).encode()).decode(),
    }
    argv = (*_PYTHON, "-m", DEEPSPEED, *_flat(options), "--no_local_rank", "--module", *crew.worker)
    return Start(argv, {"DS_ACCELERATOR": crew.device})


def _direct(crew: Crew) -> Start:
    """The agent starts the workers itself, with the variables that torchrun would set. Without torchrun's store, the
    first worker opens its own at MASTER_ADDR."""
    nodes, local_size = len(crew.gpus), len(crew.gpus[crew.node])
    size = nodes * local_size
    address = {} if crew.at_a_file else {"MASTER_ADDR": ADDRESS, "MASTER_PORT": PORT}
    common = {
        "FMFSD_STARTER": "direct",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(local_size),
        "GROUP_RANK": str(crew.node),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_NAME": "default",
        "ROLE_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": RUN_ID,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        **address,
    }
    ranks = ((local_rank, str(crew.node * local_size + local_rank)) for local_rank in range(local_size))
    workers = tuple({"LOCAL_RANK": str(local_rank), "RANK": rank, "ROLE_RANK": rank} for local_rank, rank in ranks)
    return Start((*_PYTHON, "-m", *crew.worker), common, workers)


def _meeting_at_a_file(node: int) -> dict[str, str]:
    """So that nothing listens outside loopback.

    torchrun numbers the nodes by sorting their addresses, so each gets a loopback address of its own, in order.
    """
    return {
        "--rdzv-backend": "c10d",
        "--rdzv-conf": f"store_type=file,join_timeout={JOIN_TIMEOUT_S},keep_alive_interval={KEEP_ALIVE_S}",
        "--rdzv-endpoint": RENDEZVOUS,
        "--local-addr": f"127.0.{1 + node // 100}.{100 + node % 100}",
    }


def _meeting_at_an_address(node: int) -> dict[str, str]:
    """torch's own c10d would hang where a cable is cut, and reads pickles from whoever sends some."""
    return {
        "--rdzv-backend": "static",
        "--rdzv-conf": f"timeout={JOIN_TIMEOUT_S}",
        "--master-addr": ADDRESS,
        "--master-port": PORT,
        "--node-rank": str(node),
    }


def _flat(options: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(part for option in options.items() for part in option)


_PYTHON = (sys.executable, "-P")
_STARTERS: Mapping[Starter, Callable[[Crew], Start]] = {
    "torchrun": _torchrun,
    "deepspeed": _deepspeed,
    "direct": _direct,
}
