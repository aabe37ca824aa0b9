"""Runs a function over many items in threads: results in the items' order, and few of them at a time."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fmfsd.system.cpu_count import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 8
"""Results a thread that may wait for the reader, so that one slow item does not stop the other threads."""


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield `function` of each item, in order, from a thread per core that this process may use.

    Close the iterator to end the threads early. It serves functions that release the GIL, as Pillow's decoders do.
    """
    num_threads = usable_cores()
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads, "data reader") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == num_threads * WINDOW:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
