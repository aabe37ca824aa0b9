"""Environment variables for every process of a search that uses Ray; Ray reads some of them when it is imported."""

from collections.abc import Mapping

ENVIRONMENT: Mapping[str, str] = {
    "PYTHONSAFEPATH": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray copies the folder of a driver below `uv run` and installs it again
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # a machine whose head is gone would drain until it is killed
    "RAY_prestart_worker_first_driver": "0",  # no trial could use one: Tune wants workers with variables of its own
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else trials give way to whatever else runs here
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has measured nothing
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nobody reads Tune's own state
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # the feeder hands over no more than run at a time
}
