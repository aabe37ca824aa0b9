"""Profile of one worker: some steps are only timed, then the same number are recorded by torch.profiler."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from fmfsd.distributed.collectives import Comms
from fmfsd.distributed.preflight import synchronize_device
from fmfsd.profiling.attribution import divide_step_time
from fmfsd.profiling.matmul_rate import measure_matrix_flops_per_s
from fmfsd.profiling.ranges import (
    COLLECTIVE_RANGES,
    ENGINE_RANGES,
    LOSS_RANGES,
    STEP,
    RangedStepTimer,
    add_module_ranges,
    add_ranges,
)
from fmfsd.run.profile_record import SETTLING_STEPS, WARM_UP_STEPS, WorkerProfile, count_profile_steps
from fmfsd.run.run_dir import RunDir
from fmfsd.system.atomic_files import write_json
from fmfsd.training.loop import Loop


class ProfileWriter:
    """Writes the profiler's trace and this worker's times to `RUN/profile` after `count_profile_steps(steps)` steps.

    The profiled loop has no evaluations: they are not part of a step.
    """

    def __init__(self, run: RunDir, rank: int, device: torch.device, steps: int) -> None:
        self._run, self._rank, self._device, self._steps = run, rank, device, steps
        self._step_timer, self._open = RangedStepTimer(self._step), ExitStack()
        self._number, self._timed_steps = 0, list[tuple[_Mark, _Mark]]()
        self._waited_s, self._peak_memory, self._flops_per_s = 0.0, 0, 0.0
        run.profile.mkdir(exist_ok=True, mode=0o700)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def wrap_comms(self, comms: Comms) -> Comms:
        return add_ranges(comms, COLLECTIVE_RANGES)

    def wrap_loop(self, loop: Loop) -> Loop:
        loop.comms.any(False)  # measure all workers at the same time, as in training: they may share hardware
        self._flops_per_s = measure_matrix_flops_per_s(loop.config.train, self._device)
        self._network = loop.engine.network
        loop.engine, loop.loss = add_ranges(loop.engine, ENGINE_RANGES), add_ranges(loop.loss, LOSS_RANGES)
        loop.step_timer, loop.evaluations = self._step_timer, {}
        return loop

    def _step(self) -> AbstractContextManager[None]:
        """Return the context to run the loop's next step in."""
        number, self._number = self._number, self._number + 1
        measured = number - SETTLING_STEPS
        if measured < 0 or number >= count_profile_steps(self._steps):
            return nullcontext()
        return self._time_step() if measured < self._steps else self._record_step(measured - self._steps)

    @contextmanager
    def _time_step(self) -> Iterator[None]:
        waited_s, start = self._step_timer.total_waited_s, _Mark(self._device)
        yield
        self._timed_steps.append((start, _Mark(self._device)))
        self._waited_s += self._step_timer.total_waited_s - waited_s

    @contextmanager
    def _record_step(self, number: int) -> Iterator[None]:
        if number == 0:
            self._start_profiler()
        with record_function(STEP):
            yield
            if number in (WARM_UP_STEPS - 1, WARM_UP_STEPS - 1 + self._steps):
                synchronize_device(self._device)
        self._profiler.step()
        if number == WARM_UP_STEPS - 1 + self._steps:
            self._open.close()
            self._write()

    def _start_profiler(self) -> None:
        self._peak_memory = _peak_memory(self._device)
        gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        steps = schedule(wait=0, warmup=WARM_UP_STEPS, active=self._steps, repeat=1)
        self._profiler = profile(activities=[ProfilerActivity.CPU, *gpu], schedule=steps)
        self._open.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled step has no events of its parts
        self._open.enter_context(add_module_ranges(self._network))
        self._open.enter_context(self._profiler)

    def _write(self) -> None:
        trace = self._run.profile_trace(self._rank)
        temporary = trace.with_name(f".{trace.name}")
        self._profiler.export_chrome_trace(str(temporary))
        os.replace(temporary, trace)
        steps_s = tuple(start.seconds_to(end) for start, end in self._timed_steps)
        summary = WorkerProfile(
            self._rank,
            steps_s,
            self._waited_s / sum(steps_s),
            self._peak_memory,
            self._flops_per_s,
            divide_step_time(self._profiler.events(), on_gpu=self._device.type == "cuda"),
        )
        write_json(self._run.profile_result(self._rank), summary.to_dict())


class _Mark:
    """A time stamp; on a GPU a CUDA event, which is read after the last step because reading synchronizes."""

    def __init__(self, device: torch.device) -> None:
        self._host_s = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record()

    def seconds_to(self, later: "_Mark") -> float:
        if self._event is None or later._event is None:
            return later._host_s - self._host_s
        later._event.synchronize()
        return self._event.elapsed_time(later._event) / 1e3


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory so far, in bytes, of the process or of its GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
