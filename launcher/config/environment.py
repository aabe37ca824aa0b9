"""Which of the caller's environment variables travel to the workers, and which values are shown."""

import re
from collections.abc import Mapping, Sequence

from fmfsd.errors import ConfigError, Problem

IMPORTING = ("PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONUTF8")
"""Which modules Python finds and how it reads them depend on these; node agents get them too."""

TRAVELLING = (
    *IMPORTING,
    "ALL_PROXY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CURL_CA_BUNDLE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_TOKEN_PATH",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LANG",
    "LANGUAGE",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "LOGNAME",
    "NETRC",
    "NO_PROXY",
    "PATH",
    "PYTHONCOERCECLOCALE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONPYCACHEPREFIX",
    "PYTHONWARNINGS",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "VIRTUAL_ENV",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
TRAVELLING_PREFIXES = (
    "CUDA_",
    "FMFSD_",
    "GLOO_",
    "GOMP_",
    "KMP_",
    "LC_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TRITON_",
    "UCX_",
)
_WITHOUT_SECRETS = ("HF_", "WANDB_")
"""Prefixes of variables that travel unless their names are those of secrets."""
_OF_ONE_RUN = ("WANDB_DIR", "WANDB_NAME", "WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SERVICE", "WANDB_SWEEP_ID")
"""These belong to whatever run of W&B the launcher is started in."""

OWN = (
    *("CUDA_VISIBLE_DEVICES", "FMFSD_AGENT_PID", "FMFSD_ATTEMPT", "FMFSD_COLLECTIVE_TIMEOUT_S"),
    *("FMFSD_INIT_METHOD", "FMFSD_LOG_TO_FILE", "FMFSD_PREFLIGHT", "FMFSD_STARTER"),
    *("FMFSD_TRACE", "FMFSD_PROFILE", "FMFSD_UMASK"),
    "FMFSD_BATCH_SCRIPT",
    *("FMFSD_VISIBLE_GPUS", "DS_ACCELERATOR"),
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"),
)
"""What workers get from the launcher and from nobody else."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)(?:([^/\s:@]*):\S+|[^/\s:@]+)@")
"""A password with whatever is in it, or a name alone, which may be a token; up to the last @."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def travelling(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker gets from the caller: a stated list, nothing else."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name in TRAVELLING or name.startswith(TRAVELLING_PREFIXES) or _is_setting(name)
    }


def _is_setting(name: str) -> bool:
    """Whether it is a variable of Hugging Face or W&B that is neither a secret nor of one run."""
    return name.startswith(_WITHOUT_SECRETS) and name not in _OF_ONE_RUN and not is_secret(name)


def extra_variables(asked: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """What `--env NAME` and `--env NAME=VALUE` add. ConfigError for a name that is none or is not set."""
    parts = [text.partition("=") for text in asked]
    if wrong := [problem for part in parts if (problem := _refused(*part, environment))]:
        raise ConfigError(wrong)
    return {name: value if equals else environment[name] for name, equals, value in parts}


def _refused(name: str, equals: str, _value: str, environment: Mapping[str, str]) -> Problem | None:
    if not _NAME.fullmatch(name):
        return Problem("--env", f"{name!r} is no name of a variable")
    if name in OWN:
        return Problem(f"--env {name}", "the launcher sets it itself for each worker")
    if not equals and name not in environment:
        return Problem(f"--env {name}", f"not set here; give it a value with --env {name}=VALUE")
    return None


def shown(name: str, value: str) -> str:
    """`value` as a log or a plan may show it: masked if `name` says it is secret, and without passwords in URLs."""
    return "***" if is_secret(name) else without_passwords(value)


def is_secret(name: str) -> bool:
    """Whether a variable of this name is likely to hold a secret."""
    return bool(_SECRET.search(name))


def without_passwords(text: str) -> str:
    return _URL_PASSWORD.sub(lambda match: f"{match[1]}:***@" if match[1] is not None else "***@", text)
