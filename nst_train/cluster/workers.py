"""Workers on the nodes of a Ray cluster, and the shards that they fill.

Ray starts and monitors processes and nodes. A worker that is lost, with its process or its node, is not waited for: its shard goes to a
worker on another node, and a new worker is started where there is room. A node that loses several workers in a row gets no more work.
Every few seconds the cluster is checked for new nodes.
"""

import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.store.manifest import installed_packages
from nst_train.cluster.job import Job, Worker
from nst_train.cluster.nodes import Node, joined, named, no_room, nodes_of, wanted
from nst_train.cluster_settings import ClusterSettings

_LOOK_EVERY_SECONDS = 2.0
_SAY_AFTER_SECONDS = 30.0
_MOST_LOSSES = 3  # of workers in a row on one shard or one node

_HEX, _MOST_SIGNS = re.compile(r"\b[0-9a-f]{24,} ?"), 200  # parts of Ray's messages to remove, and their maximum length


@dataclass(frozen=True)
class Step:
    """Progress on a shard: `rows` more of its rows are done.

    `is_whole`: the shard is complete; `is_others`: a process other than the workers has written it; `is_lost`: its worker was lost, and
    with it the rows done so far, which `rows` subtracts.
    """

    shard: int
    rows: int = 0
    is_whole: bool = False
    is_others: bool = False
    is_lost: bool = False


@dataclass(eq=False)
class _Started:
    """A worker as seen by its driver: opening the job (`opening`), idle, or filling a shard (`stream`)."""

    actor: Any
    node: Node
    opening: Any = None
    stream: Any = None
    shard: int = -1
    rows: int = 0
    began: float = field(default_factory=time.monotonic)  # time at which its current work started

    @property
    def waited_for(self) -> Any:  # noqa: ANN401 - what Ray waits for
        return self.opening or self.stream


@contextmanager
def open_workers(job: Job, settings: ClusterSettings, shards: int, progress: Progress) -> Iterator["Workers"]:
    """Start workers for this number of shards; at least one has opened the job. On exit they are killed, whatever they are doing.

    Raises NstError if a node lacks something; the error names it.
    """
    with ExitStack() as stack:
        workers = Workers(stack.enter_context(joined(settings)), job, settings, progress)
        stack.callback(workers.close)
        workers.begin(shards)
        yield workers


@dataclass
class Workers:
    """The workers of one job. `about` is what the first worker to open it reports."""

    ray: Any
    job: Job
    settings: ClusterSettings
    progress: Progress
    about: Any = None
    _nodes: dict[str, Node] = field(default_factory=dict)
    _first_nodes: set[str] = field(default_factory=set)  # those present at the start
    _checks: dict[Any, Node] = field(default_factory=dict)
    _started: list[_Started] = field(default_factory=list)
    _losses: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by shard and node
    _looked: float = 0.0
    _said: set[str] = field(default_factory=set)

    def begin(self, shards: int) -> None:
        """Check each node, start workers, and wait until one has opened the job."""
        self._look_for_nodes()
        self._first_nodes = set(self._nodes)
        if not self._nodes:
            raise no_room(self.ray, self.settings)
        began = time.monotonic()
        while self._checks or not any(worker.opening is None for worker in self._started):
            if not self._checks:
                self._start(max(1, shards))
            self._wait()
            if time.monotonic() - began > _SAY_AFTER_SECONDS:
                nodes = [*self._checks.values()] or [worker.node for worker in self._started]
                self._say_once("begin", f"waiting for workers of {wanted(self.settings)} on {named(nodes) or 'any node'}")

    def fill(self, shards: Sequence[int], is_done: Callable[[int], bool]) -> Iterator[Step]:
        """Have these shards written, except those that are done when their turn comes; yields progress as it is made."""
        remaining = deque(shards)
        while remaining or any(started.stream is not None for started in self._started):
            busy = sum(started.stream is not None for started in self._started)
            self._look_for_nodes()
            self._start(len(remaining) + busy)
            for worker in self._idle():
                while (shard := self._next_for(worker, remaining)) is not None and is_done(shard):
                    remaining.remove(shard)
                    yield Step(shard, is_others=True)
                if shard is not None:
                    remaining.remove(shard)
                    worker.shard, worker.rows, worker.began = shard, 0, time.monotonic()
                    worker.stream = worker.actor.fill.options(num_returns="streaming").remote(worker.shard)
            for step in self._wait():
                if step.is_lost:
                    remaining.appendleft(step.shard)
                yield step

    def ask(self, method: str) -> Any:  # noqa: ANN401 - what the job's work says
        """Call a method of one worker's opened job; if the worker is lost, ask another."""
        while True:
            self._look_for_nodes()
            self._start(1)
            idle = self._idle()
            if not idle:
                self._wait()
                continue
            idle[0].began = time.monotonic()
            try:
                return self.ray.get(idle[0].actor.ask.remote(method))
            except self.ray.exceptions.RayError as error:
                self._lose_or_raise(idle[0], error)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._started:
            self.ray.kill(worker.actor)
        self._started.clear()

    def _idle(self) -> list[_Started]:
        return [worker for worker in self._started if worker.waited_for is None and not worker.node.refused]

    def _next_for(self, worker: _Started, left: Iterable[int]) -> int | None:
        """The first shard that this worker's node has not lost more often than another node with a worker has."""
        nodes = {started.node.id for started in self._started if not started.node.refused}

        def is_for(shard: int) -> bool:
            losses = self._losses.get(shard)
            return losses is None or losses[worker.node.id] == min(losses[node] for node in nodes)

        return next(filter(is_for, left), None)

    def _look_for_nodes(self) -> None:
        if self._looked and time.monotonic() - self._looked < _LOOK_EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        alive = {node.id: node for node in nodes_of(self.ray, self.settings)}
        self._nodes = {key: self._nodes.get(key, node) for key, node in alive.items()}
        for worker in [
            started for started in self._started if started.waited_for is None and (started.node.refused or started.node.id not in alive)
        ]:
            self._end(worker)
        for node in self._nodes.values():
            if not node.is_checked and node not in self._checks.values():
                self._checks[self._check(node)] = node

    def _check(self, node: Node) -> Any:  # noqa: ANN401 - Ray's reference
        """Check whether a node has what the job needs, in a task that requests no CPU, since all of them may be taken."""
        packed, packages = self.ray.cloudpickle.dumps(self.job), installed_packages()

        def look() -> str:  # sent as code: a node may lack nst
            try:
                import pickle  # nosec B403 # unpacks what this driver packed and Ray sent

                from nst_train.cluster import job
            except ImportError as error:
                return f"lacks nst, or a package of it ({error}); install there what the driver has"
            return job.look_around(pickle.loads(packed), packages)  # nosec B301

        task = self.ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=self._at(node))
        return task.remote()

    def _at(self, node: Node) -> Any:  # noqa: ANN401 - Ray's
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def _start(self, wanted: int) -> None:
        """Start up to `wanted` workers where there is room, on nodes with the fewest losses first, then evenly over nodes."""
        limit = min(wanted, self.settings.workers or wanted)
        taken = Counter(worker.node.id for worker in self._started)
        while len(self._started) < limit:
            free = [node for node in self._nodes.values() if node.is_checked and not node.refused and taken[node.id] < node.room]
            if not free:
                return
            node = min(free, key=lambda node: (node.losses, taken[node.id]))
            taken[node.id] += 1
            kind = self.ray.remote(Worker).options(
                num_cpus=node.cpus, num_gpus=self.settings.gpus_per_worker, scheduling_strategy=self._at(node)
            )
            actor = kind.remote(self.job, node.cpus, self.settings.gpus_per_worker > 0)
            self._started.append(_Started(actor, node, opening=actor.open.remote()))

    def _wait(self) -> list[Step]:
        """Wait briefly for the next event, and return the progress made."""
        of_ref = {worker.waited_for: worker for worker in self._started if worker.waited_for is not None}
        waited = [*self._checks, *of_ref]
        if not waited:
            self._stop_without_nodes()
            time.sleep(_LOOK_EVERY_SECONDS / 4)
            return []
        self.ray.wait(waited, num_returns=1, timeout=_LOOK_EVERY_SECONDS / 2)
        ready, _ = self.ray.wait(waited, num_returns=len(waited), timeout=0)  # all that are ready, so that none starves
        steps: list[Step] = []
        for ref in ready:
            if ref in self._checks:
                self._checked(ref)
            elif of_ref[ref].opening is not None:
                self._opened(of_ref[ref])
            else:
                steps += self._went_on(of_ref[ref])
        return steps

    def _checked(self, ref: Any) -> None:  # noqa: ANN401 - Ray's reference
        node = self._checks.pop(ref)
        node.is_checked = True
        try:
            lacking = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:  # the node has just died, or nothing of ours runs on it
            node.refused = f"node {node.name} runs nothing of ours ({why_lost(error)})"
            self._looked = 0.0
            self._look_for_nodes()
            if node.id in self._nodes:
                self._leave_out(node)
            return
        if lacking:
            self._refuse(node, NstError(f"node {node.name} {lacking}"))

    def _refuse(self, node: Node, why: NstError) -> None:
        """Raise the error for a node that was present at the start; a node that joined later just gets no work."""
        node.refused = str(why)
        if node.id in self._first_nodes:
            raise why from None
        self._leave_out(node)

    def _leave_out(self, node: Node) -> None:
        self.progress.say(f"warning: {node.refused}; it gets no work")

    def _opened(self, worker: _Started) -> None:
        try:
            about = self.ray.get(worker.opening)
        except self.ray.exceptions.RayError as error:
            self._lose_or_raise(worker, error)
        else:
            worker.opening = None
            self.about = self.about or about
            if about != self.about:
                self._end(worker)
                problem = f"node {worker.node.name} does not compute what the others do: {about} instead of {self.about}"
                self._refuse(worker.node, NstError(problem))

    def _went_on(self, worker: _Started) -> list[Step]:
        try:
            rows = self.ray.get(next(worker.stream))
        except StopIteration:
            worker.stream = None
            self._losses.pop(worker.shard, None)
            worker.node.losses = 0
            return [Step(worker.shard, is_whole=True)]
        except self.ray.exceptions.RayError as error:
            return self._lose_or_raise(worker, error)
        worker.rows += rows
        return [Step(worker.shard, rows)]

    def _lose_or_raise(self, worker: _Started, error: Exception) -> list[Step]:
        """Raise an error about the work itself; for a lost worker, return a step that gives back its shard."""
        node, cause = worker.node, getattr(error, "cause", None)
        if isinstance(cause, NstError):
            cause.args = (f"node {node.name}: {cause}", *cause.args[1:])
            if worker.opening is None:
                raise cause from None
            self._end(worker)
            self._refuse(node, cause)
            return []
        if isinstance(cause, Exception) and not isinstance(cause, OSError):
            raise error
        self._end(worker)
        reason = why_lost(cause or error)
        self._count_loss(worker, reason)
        if worker.stream is None:
            return []
        losses = self._losses[worker.shard]
        losses[node.id] += 1
        if losses.total() == _MOST_LOSSES:
            raise NstError(
                f"shard {worker.shard}: {_MOST_LOSSES} workers in a row were lost on it, the last on node {node.name}: {reason}; "
                "finished work is kept; the same command resumes"
            )
        self.progress.say(f"node {node.name}: lost a worker ({reason}); another worker takes over its shard")
        return [Step(worker.shard, -worker.rows, is_lost=True)]

    def _count_loss(self, worker: _Started, reason: str) -> None:
        """Count a loss for the worker's node. A node that is still alive and lost several workers in a row gets no more work."""
        node = worker.node
        self._looked = 0.0
        self._look_for_nodes()
        node.lose(worker.began, time.monotonic())
        if node.id in self._nodes and node.losses >= _MOST_LOSSES and not node.refused:
            node.refused = f"node {node.name}: {_MOST_LOSSES} workers in a row were lost on it, the last by {reason}"
            self._leave_out(node)

    def _end(self, worker: _Started) -> None:
        self._started.remove(worker)
        self.ray.kill(worker.actor)

    def _stop_without_nodes(self) -> None:
        """Raises NstError if all nodes are refused. If there are no nodes, one may still join."""
        refused = [node.refused for node in self._nodes.values() if node.refused]
        if refused and len(refused) == len(self._nodes):
            raise NstError(f"no usable node is left: {refused[-1]}")
        if not self._nodes:
            self._say_once("nodes", "no node of the cluster has room for a worker any more; waiting for one to join")

    def _say_once(self, about: str, line: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self.progress.say(line)


def why_lost(error: Exception) -> str:
    """The reason that Ray gives for the end of a worker, without the fact that it ended and its ID."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return _HEX.sub("", lines[min(1, len(lines) - 1)]).rstrip(".")[:_MOST_SIGNS] if lines else type(error).__name__
