"""Maps a function over items in threads, in order, with a bounded number of pending results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fmfsd.system.cpu_count import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 8
"""Pending results per thread, so that one slow item does not block the other threads."""


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield `function(item)` of each item, in order, with one thread per core that this process may use.

    Close the iterator to end the threads early. For functions that release the GIL, such as Pillow's decoders.
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
