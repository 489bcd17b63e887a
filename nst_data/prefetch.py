"""Run work in threads, slightly ahead of the consumer, with results in order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_BATCH_SIZE = 16  # one future per image would cost as much as reading a small image


def cpus_of_this_process() -> int:
    """The number of CPUs available to this process, divided among the processes that torchrun started on this machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS and Windows
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def map_batches_in_threads(work: Callable[[S], T], batches: Iterable[S], threads: int) -> Iterator[tuple[S, T]]:
    """Yield each batch with its result, in order; a separate thread reads ahead, with only a few batches in progress.

    Results are yielded even while the next batch is still being read.
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
    finally:  # if the consumer stops early, do not wait for unused results
        pool.shutdown(wait=False, cancel_futures=True)
        reader.shutdown(wait=False, cancel_futures=True)


def map_in_threads(
    work: Callable[[S], T], items: Iterable[S], threads: int | None = None, batch_size: Callable[[], int] = lambda: _BATCH_SIZE
) -> Iterator[T]:
    """Yield results in the order of the items; each thread takes `batch_size` items at a time. By default one thread per CPU."""
    remaining_items = iter(items)
    batches = iter(lambda: list(islice(remaining_items, batch_size())), [])
    for _, results in map_batches_in_threads(lambda batch: [work(item) for item in batch], batches, threads or cpus_of_this_process()):
        yield from results
