"""Work in threads, a little ahead of whoever takes its results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_ITEMS_AT_ONCE = 16  # a future for each image would cost as much as reading a small one


def cpus_of_this_process() -> int:
    """The CPUs that this process may use, shared with the processes that torchrun started beside it."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS and Windows have none
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_threads(work: Callable[[S], T], batches: Iterable[S], threads: int) -> Iterator[tuple[S, T]]:
    """Each batch with its result, in order; a thread of its own reads ahead, and no more than a few batches are under way.

    Results come out also while the next batch lets itself be waited for.
    """
    pool, reader, source = ThreadPoolExecutor(threads), ThreadPoolExecutor(1), iter(batches)
    waiting: deque[tuple[S, Future[T]]] = deque()
    upcoming: Future[S | None] = reader.submit(next, source, None)
    try:
        while True:
            full = len(waiting) > threads + 1
            results: list[Future[Any]] = [waiting[0][1]] if waiting else []
            wait(results if full else [upcoming, *results], return_when=FIRST_COMPLETED)
            if upcoming.done() and not full:
                batch = upcoming.result()
                if batch is None:
                    break
                waiting.append((batch, pool.submit(work, batch)))
                upcoming = reader.submit(next, source, None)
            else:
                first, result = waiting.popleft()
                yield first, result.result()
        for batch, result in waiting:
            yield batch, result.result()
    finally:  # whoever stops early need not wait for what nobody will use
        pool.shutdown(wait=False, cancel_futures=True)
        reader.shutdown(wait=False, cancel_futures=True)


def each_in_threads(
    work: Callable[[S], T], items: Iterable[S], threads: int | None = None, at_once: Callable[[], int] = lambda: _ITEMS_AT_ONCE
) -> Iterator[T]:
    """The results in the order of the items, which a thread takes `at_once`; by default with a thread for each CPU."""
    rest = iter(items)
    batches = iter(lambda: list(islice(rest, at_once())), [])
    for _, results in in_threads(lambda some: [work(item) for item in some], batches, threads or cpus_of_this_process()):
        yield from results
