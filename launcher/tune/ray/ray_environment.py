"""Environment variables for every process of a search that uses Ray; Ray reads some of them when it is imported."""

from collections.abc import Mapping

ENVIRONMENT: Mapping[str, str] = {
    "PYTHONSAFEPATH": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray reinstalls the project of a driver under `uv run`
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else a worker node without its head drains for ever
    "RAY_prestart_worker_first_driver": "0",  # Tune's trials can not use prestarted workers
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else trials run at lower priority than other processes
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial has no metrics
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never read
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the searcher limits the number of trials itself
}
