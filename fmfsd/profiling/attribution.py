"""From what the profiler has recorded to where a step goes: on the host, or on the GPU that it keeps at work.

Times of events are in microseconds, those of what is made of them in seconds a step.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent

from fmfsd.profiling.intervals import Interval, length, overlap, union, without
from fmfsd.profiling.ranges import STEP
from fmfsd.run.profile_record import BACKWARD, COMMUNICATION, FORWARD, LOSS, OTHER, PARTS, Division, Operator

SLOWEST = 5
_EVALUATE = "autograd::engine::evaluate_function: "
_RANGES = {**{part: part for part in PARTS}, STEP: OTHER, FORWARD: OTHER, BACKWARD: f"{BACKWARD}/{OTHER}"}
"""To which part a range's time belongs, but for what is inside of another range."""
_COMMUNICATION = ("c10d::", "gloo:", "nccl", "record_param_comms")
"""How names of communication begin: of calls, of work on gloo's threads, of NCCL's kernels (`ncclDevKernel_...`)."""

Key = tuple[str, str]
"""An operator's name, and its part of the step."""
Placed = tuple[FunctionEvent, str]
"""An event of the host, and the part of the step that it belongs to."""


def division(events: Sequence[FunctionEvent], *, on_gpu: bool) -> Division:
    """Of the steps in `events`, which begin and end with all work done."""
    steps = [event for event in events if event.name == STEP and _is_on_host(event)]
    placed = list(_placed(events, steps[0].thread))
    return _on_gpu(events, steps, placed) if on_gpu else _on_host(events, steps, placed)


def _on_host(events: Sequence[FunctionEvent], steps: Sequence[FunctionEvent], placed: Sequence[Placed]) -> Division:
    """By the time of the thread that makes the steps, each event without those in it."""
    here = [(event, part) for event, part in placed if event.thread == steps[0].thread]
    elsewhere = union(_span(event) for event in events if event.is_async and _communicates(event.name))
    spent, parts = defaultdict[Key, float](float), defaultdict[str, float](float)
    for event, part in here:
        own_us, waited_us = event.self_cpu_time_total, _waited_us(event, elsewhere)
        parts[part] += own_us - waited_us
        parts[COMMUNICATION] += waited_us
        if event.name not in _RANGES:
            spent[event.name, part] += own_us
    talk = union([*elsewhere, *(_span(event) for event, part in here if part == COMMUNICATION)])
    return _division(sum(map(_length, steps)), len(steps), parts, length(talk), spent, _calls(here))


def _waited_us(event: FunctionEvent, elsewhere: Sequence[Interval]) -> float:
    """Of a range, in which nothing is computed but by the events in it: while others of its process communicate."""
    if event.name not in _RANGES or _RANGES[event.name] == COMMUNICATION:
        return 0.0
    return overlap(without(_span(event), map(_span, event.cpu_children)), elsewhere)


def _on_gpu(events: Sequence[FunctionEvent], steps: Sequence[FunctionEvent], placed: Sequence[Placed]) -> Division:
    """By the time of the kernels that events launch; what is left is that in which none was at work."""
    kernels = [event for event in events if not _is_on_host(event) and not event.is_user_annotation]
    computing = union(_span(kernel) for kernel in kernels if not _communicates(kernel.name))
    talk = union(_span(kernel) for kernel in kernels if _communicates(kernel.name))
    spent, parts = defaultdict[Key, float](float), defaultdict[str, float](float)
    for event, part in placed:
        took_us = sum(
            each.duration for each in event.kernels if each.name != event.name and not _communicates(each.name)
        )
        parts[part] += took_us
        spent[event.name, part] += took_us
    parts[COMMUNICATION] += length(talk) - overlap(talk, computing)
    whole_us = steps[-1].time_range.end - steps[0].time_range.start
    parts[OTHER] += whole_us - sum(parts.values())
    return _division(whole_us, len(steps), parts, length(talk), spent, _calls(placed))


def _division(
    whole_us: float,
    steps: int,
    parts: Mapping[str, float],
    communication_us: float,
    spent: Mapping[Key, float],
    calls: Mapping[Key, int],
) -> Division:
    a_step, slowest_first = 1e-6 / steps, sorted(spent.items(), key=lambda item: -item[1])
    slowest = [Operator(*key, took * a_step, calls[key] / steps) for key, took in slowest_first[:SLOWEST]]
    named = {part: parts.get(part, 0.0) * a_step for part in PARTS}
    return Division(whole_us * a_step, named, communication_us * a_step, tuple(slowest))


def _calls(placed: Iterable[Placed]) -> Counter[Key]:
    return Counter((event.name, part) for event, part in placed)


def _placed(events: Sequence[FunctionEvent], thread: int) -> Iterator[Placed]:
    """Every event of the steps, those of `thread` first: what is computed backward, there or on a thread of its own,
    belongs to where it was computed forward."""
    tops = [event for event in events if _is_on_host(event) and not event.is_async and event.cpu_parent is None]
    placing = _Placing()
    for event in sorted(tops, key=lambda top: (top.thread != thread, top.time_range.start)):
        yield from placing.of(event, None)


class _Placing:
    """Knows in which part each step backward, by thread and autograd's number, was made."""

    def __init__(self) -> None:
        self._made = dict[tuple[int, int], str]()

    def of(self, event: FunctionEvent, inside: str | None) -> Iterator[Placed]:
        """It and all that is in it; `inside` a part, or none yet."""
        part = self._part(event, inside)
        if part is not None:
            yield event, part
        for child in event.cpu_children:
            yield from self.of(child, part)

    def _part(self, event: FunctionEvent, inside: str | None) -> str | None:
        if event.name in _RANGES and (event.name == STEP or inside is not None):
            return _RANGES[event.name]
        if event.name.startswith(_EVALUATE):
            made_in = self._made.get((event.fwd_thread or 0, event.sequence_nr), OTHER)
            return f"{BACKWARD}/{made_in.removeprefix(f'{FORWARD}/')}"
        if inside is None or _communicates(event.name):
            return inside and COMMUNICATION
        if event.sequence_nr >= 0 and (inside == LOSS or inside.startswith(FORWARD)):
            self._made[event.thread, event.sequence_nr] = inside  # of several with one number the last has made it
        return inside


def _communicates(name: str) -> bool:
    return name.startswith(_COMMUNICATION)


def _is_on_host(event: FunctionEvent) -> bool:
    return bool(event.device_type == DeviceType.CPU)


def _span(event: FunctionEvent) -> Interval:
    return event.time_range.start, event.time_range.end


def _length(event: FunctionEvent) -> float:
    return event.time_range.end - event.time_range.start
