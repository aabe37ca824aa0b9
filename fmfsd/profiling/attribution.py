"""Attribution of a step's time to its parts, from the profiler's events, by time on the host or on the GPU.

Times of events are in microseconds; times in the result are in seconds per step.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent

from fmfsd.profiling.intervals import Interval, length, overlap, subtract, union
from fmfsd.profiling.ranges import STEP
from fmfsd.run.profile_record import BACKWARD, COMMUNICATION, FORWARD, LOSS, OTHER, PARTS, Operator, StepBreakdown

SLOWEST = 5
_EVALUATE = "autograd::engine::evaluate_function: "
_RANGES = {**{part: part for part in PARTS}, STEP: OTHER, FORWARD: OTHER, BACKWARD: f"{BACKWARD}/{OTHER}"}
"""The part of the step that a range's own time belongs to; nested ranges count for their own part."""
_COMMUNICATION = ("c10d::", "gloo:", "nccl", "record_param_comms")
"""Prefixes of communication events: calls, work on gloo's threads, NCCL's kernels (`ncclDevKernel_...`)."""

Key = tuple[str, str]
"""Name of an operator, and its part of the step."""
Assigned = tuple[FunctionEvent, str]
"""A host event, and its part of the step."""


def divide_step_time(events: Sequence[FunctionEvent], *, on_gpu: bool) -> StepBreakdown:
    """Divide the time of the steps in `events` into parts. The device must be idle at their start and at their end."""
    steps = [event for event in events if event.name == STEP and _is_on_host(event)]
    assigned = list(_assign_parts(events, steps[0].thread))
    return _divide_gpu_time(events, steps, assigned) if on_gpu else _divide_host_time(events, steps, assigned)


def _divide_host_time(
    events: Sequence[FunctionEvent], steps: Sequence[FunctionEvent], assigned: Sequence[Assigned]
) -> StepBreakdown:
    """Divide by the time of the thread that runs the steps, each event without its nested events."""
    on_thread = [(event, part) for event, part in assigned if event.thread == steps[0].thread]
    background = union(_span(event) for event in events if event.is_async and _communicates(event.name))
    by_operator, parts = defaultdict[Key, float](float), defaultdict[str, float](float)
    for event, part in on_thread:
        own_us, waited_us = event.self_cpu_time_total, _waited_us(event, background)
        parts[part] += own_us - waited_us
        parts[COMMUNICATION] += waited_us
        if event.name not in _RANGES:
            by_operator[event.name, part] += own_us
    communication = union([*background, *(_span(event) for event, part in on_thread if part == COMMUNICATION)])
    return _division(sum(map(_length, steps)), len(steps), parts, length(communication), by_operator, _calls(on_thread))


def _waited_us(event: FunctionEvent, background: Sequence[Interval]) -> float:
    """Return the part of a range's own time during which other threads communicate."""
    if event.name not in _RANGES or _RANGES[event.name] == COMMUNICATION:
        return 0.0
    return overlap(subtract(_span(event), map(_span, event.cpu_children)), background)


def _divide_gpu_time(
    events: Sequence[FunctionEvent], steps: Sequence[FunctionEvent], assigned: Sequence[Assigned]
) -> StepBreakdown:
    """Divide by the time of the kernels that each event launches; OTHER includes the time without a kernel."""
    kernels = [event for event in events if not _is_on_host(event) and not event.is_user_annotation]
    computing = union(_span(kernel) for kernel in kernels if not _communicates(kernel.name))
    communication = union(_span(kernel) for kernel in kernels if _communicates(kernel.name))
    by_operator, parts = defaultdict[Key, float](float), defaultdict[str, float](float)
    for event, part in assigned:
        kernels_us = sum(
            each.duration for each in event.kernels if each.name != event.name and not _communicates(each.name)
        )
        parts[part] += kernels_us
        by_operator[event.name, part] += kernels_us
    parts[COMMUNICATION] += length(communication) - overlap(communication, computing)
    total_us = steps[-1].time_range.end - steps[0].time_range.start
    parts[OTHER] += total_us - sum(parts.values())
    return _division(total_us, len(steps), parts, length(communication), by_operator, _calls(assigned))


def _division(
    total_us: float,
    steps: int,
    parts: Mapping[str, float],
    communication_us: float,
    by_operator: Mapping[Key, float],
    calls: Mapping[Key, int],
) -> StepBreakdown:
    scale, slowest_first = 1e-6 / steps, sorted(by_operator.items(), key=lambda item: -item[1])
    slowest = [Operator(*key, time_us * scale, calls[key] / steps) for key, time_us in slowest_first[:SLOWEST]]
    by_part = {part: parts.get(part, 0.0) * scale for part in PARTS}
    return StepBreakdown(total_us * scale, by_part, communication_us * scale, tuple(slowest))


def _calls(assigned: Iterable[Assigned]) -> Counter[Key]:
    return Counter((event.name, part) for event, part in assigned)


def _assign_parts(events: Sequence[FunctionEvent], thread: int) -> Iterator[Assigned]:
    """Yield every event of the steps with its part, the events of `thread` first.

    A backward operator, on `thread` or on autograd's own thread, gets the part of its forward operator.
    """
    tops = [event for event in events if _is_on_host(event) and not event.is_async and event.cpu_parent is None]
    assignment = _PartAssignment()
    for event in sorted(tops, key=lambda top: (top.thread != thread, top.time_range.start)):
        yield from assignment.assign(event, None)


class _PartAssignment:
    """Assigns events to parts. Remembers the part of each forward operator by thread and autograd sequence number."""

    def __init__(self) -> None:
        self._forward_parts = dict[tuple[int, int], str]()

    def assign(self, event: FunctionEvent, parent_part: str | None) -> Iterator[Assigned]:
        """Yield the event and its nested events with their parts; `parent_part`: None outside of a step."""
        part = self._part(event, parent_part)
        if part is not None:
            yield event, part
        for child in event.cpu_children:
            yield from self.assign(child, part)

    def _part(self, event: FunctionEvent, parent_part: str | None) -> str | None:
        if event.name in _RANGES and (event.name == STEP or parent_part is not None):
            return _RANGES[event.name]
        if event.name.startswith(_EVALUATE):
            forward_part = self._forward_parts.get((event.fwd_thread or 0, event.sequence_nr), OTHER)
            return f"{BACKWARD}/{forward_part.removeprefix(f'{FORWARD}/')}"
        if parent_part is None or _communicates(event.name):
            return parent_part and COMMUNICATION
        if event.sequence_nr >= 0 and (parent_part == LOSS or parent_part.startswith(FORWARD)):
            self._forward_parts[event.thread, event.sequence_nr] = parent_part  # the last of several counts
        return parent_part


def _communicates(name: str) -> bool:
    return name.startswith(_COMMUNICATION)


def _is_on_host(event: FunctionEvent) -> bool:
    return bool(event.device_type == DeviceType.CPU)


def _span(event: FunctionEvent) -> Interval:
    return event.time_range.start, event.time_range.end


def _length(event: FunctionEvent) -> float:
    return event.time_range.end - event.time_range.start
