"""DeepSpeed as a worker wants it: it compiles nothing at a start, and its log has only what somebody should act on."""

import logging
from collections import defaultdict
from importlib import import_module
from types import ModuleType


def compile_nothing(ops: ModuleType) -> None:
    """Answer for `deepspeed.ops` which of its extensions in C++ could be compiled here: none.

    DeepSpeed 0.19 asks in one place (comm/torch.py, `build_shm_op`), and on a CPU then compiles an all-reduce over
    shared memory: half a minute, with ninja and a compiler or not at all. Only `inference_all_reduce` uses it, which no
    training calls. To find its own answer it tries a compiler for every extension.
    """
    vars(ops)["__compatible_ops__"] = defaultdict(bool)


def import_muon(compiler: ModuleType) -> None:
    """Import Muon, an optimizer that no config of ours can name, without compiling its kernels.

    Every start with ZeRO imports it, to see that the optimizer is another one (DeepSpeed 0.19, runtime/zero/utils.py,
    `is_zero_supported_optimizer`). Its decorators from `deepspeed.runtime.compiler` then load torch's inductor, which
    takes 1.9 s of each worker.
    """
    decorator = compiler.compile
    vars(compiler)["compile"] = lambda: lambda function: function
    try:
        import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        vars(compiler)["compile"] = decorator


def say_less(logger: logging.Logger) -> None:
    """Leave out what DeepSpeed warns of at every start with an optimizer of PyTorch's."""
    logger.addFilter(_of_consequence)


def _of_consequence(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in str(record.msg)
