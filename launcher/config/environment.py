"""Environment variables: which of the caller's are forwarded to workers, and which values are masked in output."""

import re
from collections.abc import Mapping, Sequence

from fmfsd.errors import ConfigError, Problem

IMPORT_VARIABLES = ("PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONUTF8")
"""Variables that decide which modules Python finds and how it reads them; node agents get them too."""

FORWARDED = (
    *IMPORT_VARIABLES,
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
FORWARDED_PREFIXES = (
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
_FORWARDED_UNLESS_SECRET = ("HF_", "WANDB_")
"""Variables with these prefixes are forwarded unless their names suggest a secret."""
_RUN_SPECIFIC = ("WANDB_DIR", "WANDB_NAME", "WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SERVICE", "WANDB_SWEEP_ID")
"""Variables that belong to the W&B run inside which the launcher was started."""

LAUNCHER_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "FMFSD_AGENT_PID", "FMFSD_ATTEMPT", "FMFSD_COLLECTIVE_TIMEOUT_S"),
    *("FMFSD_INIT_METHOD", "FMFSD_LOG_TO_FILE", "FMFSD_PREFLIGHT", "FMFSD_STARTER"),
    *("FMFSD_TRACE", "FMFSD_PROFILE", "FMFSD_UMASK"),
    "FMFSD_BATCH_SCRIPT",
    *("FMFSD_VISIBLE_GPUS", "DS_ACCELERATOR"),
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE"),
)
"""Variables that only the launcher sets for workers."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)(?:([^/\s:@]*):\S+|[^/\s:@]+)@")
"""A password in a URL, or a user name without one, which may be a token; extends to the last @."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def forwarded_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's variables that a worker gets: those in the lists above, nothing else."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name in FORWARDED or name.startswith(FORWARDED_PREFIXES) or _is_forwarded_setting(name)
    }


def _is_forwarded_setting(name: str) -> bool:
    """Return whether `name` is a Hugging Face or W&B variable that is neither a secret nor specific to one run."""
    return name.startswith(_FORWARDED_UNLESS_SECRET) and name not in _RUN_SPECIFIC and not is_secret(name)


def parse_env_options(options: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `--env NAME` and `--env NAME=VALUE`. ConfigError for an invalid or unset name."""
    parts = [text.partition("=") for text in options]
    if problems := [problem for part in parts if (problem := _env_problem(*part, environment))]:
        raise ConfigError(problems)
    return {name: value if equals else environment[name] for name, equals, value in parts}


def _env_problem(name: str, equals: str, _value: str, environment: Mapping[str, str]) -> Problem | None:
    if not _NAME.fullmatch(name):
        return Problem("--env", f"{name!r} is not a valid variable name")
    if name in LAUNCHER_VARIABLES:
        return Problem(f"--env {name}", "reserved: the launcher sets it for each worker; leave it out")
    if not equals and name not in environment:
        return Problem(f"--env {name}", f"not set here; give it a value with --env {name}=VALUE")
    return None


def mask_secret(name: str, value: str) -> str:
    """Return `value` for logs and plans: masked if `name` suggests a secret, and without passwords in URLs."""
    return "***" if is_secret(name) else mask_passwords(value)


def is_secret(name: str) -> bool:
    """Return whether a variable of this name probably contains a secret."""
    return bool(_SECRET.search(name))


def mask_passwords(text: str) -> str:
    """Mask passwords in URLs."""
    return _URL_PASSWORD.sub(lambda match: f"{match[1]}:***@" if match[1] is not None else "***@", text)
