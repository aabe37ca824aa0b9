"""Makes DeepSpeed start quickly and quietly: no compilation at start, and no warnings that need no action."""

import logging
from collections import defaultdict
from importlib import import_module
from types import ModuleType


def disable_op_builds(ops: ModuleType) -> None:
    """Mark every C++ extension in `deepspeed.ops` as incompatible, so that DeepSpeed compiles none.

    DeepSpeed 0.19 checks this in one place (comm/torch.py, `build_shm_op`) and then, on a CPU, compiles an all-reduce
    over shared memory: half a minute if there is ninja and a compiler. Only `inference_all_reduce` uses it, which
    training never calls. The check itself would try a compiler for every extension.
    """
    vars(ops)["__compatible_ops__"] = defaultdict(bool)


def import_muon(compiler: ModuleType) -> None:
    """Import DeepSpeed's Muon optimizer, which our configs can't select, without its compile decorators.

    With ZeRO, DeepSpeed imports it at every start to check the optimizer's type (DeepSpeed 0.19, runtime/zero/utils.py,
    `is_zero_supported_optimizer`). Its decorators from `deepspeed.runtime.compiler` load torch's inductor, which takes
    1.9 s per worker.
    """
    decorator = compiler.compile
    vars(compiler)["compile"] = lambda: lambda function: function
    try:
        import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        vars(compiler)["compile"] = decorator


def filter_log(logger: logging.Logger) -> None:
    """Filter out the warning that DeepSpeed logs at every start with a PyTorch optimizer."""
    logger.addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in str(record.msg)
