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
from nst_train.cluster.nodes import Node, connect_cluster, no_room_error, node_names, usable_nodes, worker_resources
from nst_train.cluster_settings import ClusterSettings

_REFRESH_SECONDS = 2.0
_REPORT_AFTER_SECONDS = 30.0
_MAX_LOSSES = 3  # of workers in a row on one shard or one node

_HEX, _MAX_CHARACTERS = re.compile(r"\b[0-9a-f]{24,} ?"), 200  # parts of Ray's messages to remove, and their maximum length


@dataclass(frozen=True)
class ShardProgress:
    """Progress on a shard: `rows` more of its rows are done.

    `is_complete`: the shard is complete; `is_by_others`: a process other than the workers has written it; `is_lost`: its worker was lost,
    and with it the rows done so far, which `rows` subtracts.
    """

    shard: int
    rows: int = 0
    is_complete: bool = False
    is_by_others: bool = False
    is_lost: bool = False


@dataclass(eq=False)
class _RunningWorker:
    """A worker as seen by its driver: opening the job (`opening`), idle, or filling a shard (`stream`)."""

    actor: Any
    node: Node
    opening: Any = None
    stream: Any = None
    shard: int = -1
    rows: int = 0
    started_at: float = field(default_factory=time.monotonic)  # time at which its current work started

    @property
    def pending(self) -> Any:  # noqa: ANN401 - what Ray waits for
        return self.opening or self.stream


@contextmanager
def open_workers(job: Job, settings: ClusterSettings, shards: int, progress: Progress) -> Iterator["Workers"]:
    """Start workers for this number of shards; at least one has opened the job. On exit they are killed, whatever they are doing.

    Raises NstError if a node lacks something; the error names it.
    """
    with ExitStack() as stack:
        workers = Workers(stack.enter_context(connect_cluster(settings)), job, settings, progress)
        stack.callback(workers.close)
        workers.start(shards)
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
    _workers: list[_RunningWorker] = field(default_factory=list)
    _losses: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by shard and node
    _refreshed_at: float = 0.0
    _reported: set[str] = field(default_factory=set)

    def start(self, shards: int) -> None:
        """Check each node, start workers, and wait until one has opened the job."""
        self._refresh_nodes()
        self._first_nodes = set(self._nodes)
        if not self._nodes:
            raise no_room_error(self.ray, self.settings)
        started_at = time.monotonic()
        while self._checks or not any(worker.opening is None for worker in self._workers):
            if not self._checks:
                self._start_workers(max(1, shards))
            self._wait()
            if time.monotonic() - started_at > _REPORT_AFTER_SECONDS:
                nodes = [*self._checks.values()] or [worker.node for worker in self._workers]
                self._report_once("begin", f"waiting for workers of {worker_resources(self.settings)} on {node_names(nodes) or 'any node'}")

    def fill(self, shards: Sequence[int], is_done: Callable[[int], bool]) -> Iterator[ShardProgress]:
        """Have these shards written, except those that are done when their turn comes; yields progress as it is made."""
        remaining = deque(shards)
        while remaining or any(started.stream is not None for started in self._workers):
            busy = sum(started.stream is not None for started in self._workers)
            self._refresh_nodes()
            self._start_workers(len(remaining) + busy)
            for worker in self._idle_workers():
                while (shard := self._next_shard(worker, remaining)) is not None and is_done(shard):
                    remaining.remove(shard)
                    yield ShardProgress(shard, is_by_others=True)
                if shard is not None:
                    remaining.remove(shard)
                    worker.shard, worker.rows, worker.started_at = shard, 0, time.monotonic()
                    worker.stream = worker.actor.fill.options(num_returns="streaming").remote(worker.shard)
            for step in self._wait():
                if step.is_lost:
                    remaining.appendleft(step.shard)
                yield step

    def ask(self, method: str) -> Any:  # noqa: ANN401 - what the job's work says
        """Call a method of one worker's opened job; if the worker is lost, ask another."""
        while True:
            self._refresh_nodes()
            self._start_workers(1)
            idle = self._idle_workers()
            if not idle:
                self._wait()
                continue
            idle[0].started_at = time.monotonic()
            try:
                return self.ray.get(idle[0].actor.ask.remote(method))
            except self.ray.exceptions.RayError as error:
                self._lose_or_raise(idle[0], error)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            self.ray.kill(worker.actor)
        self._workers.clear()

    def _idle_workers(self) -> list[_RunningWorker]:
        return [worker for worker in self._workers if worker.pending is None and not worker.node.refusal]

    def _next_shard(self, worker: _RunningWorker, remaining: Iterable[int]) -> int | None:
        """The first shard that this worker's node has not lost more often than another node with a worker has."""
        nodes = {started.node.id for started in self._workers if not started.node.refusal}

        def is_for(shard: int) -> bool:
            losses = self._losses.get(shard)
            return losses is None or losses[worker.node.id] == min(losses[node] for node in nodes)

        return next(filter(is_for, remaining), None)

    def _refresh_nodes(self) -> None:
        if self._refreshed_at and time.monotonic() - self._refreshed_at < _REFRESH_SECONDS:
            return
        self._refreshed_at = time.monotonic()
        alive = {node.id: node for node in usable_nodes(self.ray, self.settings)}
        self._nodes = {key: self._nodes.get(key, node) for key, node in alive.items()}
        for worker in [
            started for started in self._workers if started.pending is None and (started.node.refusal or started.node.id not in alive)
        ]:
            self._kill(worker)
        for node in self._nodes.values():
            if not node.is_checked and node not in self._checks.values():
                self._checks[self._check_node(node)] = node

    def _check_node(self, node: Node) -> Any:  # noqa: ANN401 - Ray's reference
        """Check whether a node has what the job needs, in a task that requests no CPU, since all of them may be taken."""
        packed, packages = self.ray.cloudpickle.dumps(self.job), installed_packages()

        def check_this_machine() -> str:  # sent as code: a node may lack nst
            try:
                import pickle  # nosec B403 # unpacks what this driver packed and Ray sent

                from nst_train.cluster import job
            except ImportError as error:
                return f"lacks nst, or a package of it ({error}); install there what the driver has"
            return job.check_machine(pickle.loads(packed), packages)  # nosec B301

        task = self.ray.remote(check_this_machine).options(num_cpus=0, max_retries=0, scheduling_strategy=self._affinity_to(node))
        return task.remote()

    def _affinity_to(self, node: Node) -> Any:  # noqa: ANN401 - Ray's
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def _start_workers(self, count: int) -> None:
        """Start up to `count` workers where there is room, on nodes with the fewest losses first, then evenly over nodes."""
        limit = min(count, self.settings.workers or count)
        worker_counts = Counter(worker.node.id for worker in self._workers)
        while len(self._workers) < limit:
            free = [
                node for node in self._nodes.values() if node.is_checked and not node.refusal and worker_counts[node.id] < node.capacity
            ]
            if not free:
                return
            node = min(free, key=lambda node: (node.losses, worker_counts[node.id]))
            worker_counts[node.id] += 1
            kind = self.ray.remote(Worker).options(
                num_cpus=node.cpus, num_gpus=self.settings.gpus_per_worker, scheduling_strategy=self._affinity_to(node)
            )
            actor = kind.remote(self.job, node.cpus, self.settings.gpus_per_worker > 0)
            self._workers.append(_RunningWorker(actor, node, opening=actor.open.remote()))

    def _wait(self) -> list[ShardProgress]:
        """Wait briefly for the next event, and return the progress made."""
        of_ref = {worker.pending: worker for worker in self._workers if worker.pending is not None}
        pending = [*self._checks, *of_ref]
        if not pending:
            self._check_nodes_left()
            time.sleep(_REFRESH_SECONDS / 4)
            return []
        self.ray.wait(pending, num_returns=1, timeout=_REFRESH_SECONDS / 2)
        ready, _ = self.ray.wait(pending, num_returns=len(pending), timeout=0)  # all that are ready, so that none starves
        steps: list[ShardProgress] = []
        for ref in ready:
            if ref in self._checks:
                self._handle_checked(ref)
            elif of_ref[ref].opening is not None:
                self._handle_opened(of_ref[ref])
            else:
                steps += self._handle_progress(of_ref[ref])
        return steps

    def _handle_checked(self, ref: Any) -> None:  # noqa: ANN401 - Ray's reference
        node = self._checks.pop(ref)
        node.is_checked = True
        try:
            mismatch = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:  # the node has just died, or nothing of ours runs on it
            node.refusal = f"node {node.name} runs nothing of ours ({loss_reason(error)})"
            self._refreshed_at = 0.0
            self._refresh_nodes()
            if node.id in self._nodes:
                self._warn_refused(node)
            return
        if mismatch:
            self._refuse(node, NstError(f"node {node.name} {mismatch}"))

    def _refuse(self, node: Node, error: NstError) -> None:
        """Raise the error for a node that was present at the start; a node that joined later just gets no work."""
        node.refusal = str(error)
        if node.id in self._first_nodes:
            raise error from None
        self._warn_refused(node)

    def _warn_refused(self, node: Node) -> None:
        self.progress.say(f"warning: {node.refusal}; it gets no work")

    def _handle_opened(self, worker: _RunningWorker) -> None:
        try:
            about = self.ray.get(worker.opening)
        except self.ray.exceptions.RayError as error:
            self._lose_or_raise(worker, error)
        else:
            worker.opening = None
            self.about = self.about or about
            if about != self.about:
                self._kill(worker)
                problem = f"node {worker.node.name} does not compute what the others do: {about} instead of {self.about}"
                self._refuse(worker.node, NstError(problem))

    def _handle_progress(self, worker: _RunningWorker) -> list[ShardProgress]:
        try:
            rows = self.ray.get(next(worker.stream))
        except StopIteration:
            worker.stream = None
            self._losses.pop(worker.shard, None)
            worker.node.losses = 0
            return [ShardProgress(worker.shard, is_complete=True)]
        except self.ray.exceptions.RayError as error:
            return self._lose_or_raise(worker, error)
        worker.rows += rows
        return [ShardProgress(worker.shard, rows)]

    def _lose_or_raise(self, worker: _RunningWorker, error: Exception) -> list[ShardProgress]:
        """Raise an error about the work itself; for a lost worker, return a step that gives back its shard."""
        node, cause = worker.node, getattr(error, "cause", None)
        if isinstance(cause, NstError):
            cause.args = (f"node {node.name}: {cause}", *cause.args[1:])
            if worker.opening is None:
                raise cause from None
            self._kill(worker)
            self._refuse(node, cause)
            return []
        if isinstance(cause, Exception) and not isinstance(cause, OSError):
            raise error
        self._kill(worker)
        reason = loss_reason(cause or error)
        self._count_loss(worker, reason)
        if worker.stream is None:
            return []
        losses = self._losses[worker.shard]
        losses[node.id] += 1
        if losses.total() == _MAX_LOSSES:
            raise NstError(
                f"shard {worker.shard}: {_MAX_LOSSES} workers in a row were lost on it, the last on node {node.name}: {reason}; "
                "finished work is kept; the same command resumes"
            )
        self.progress.say(f"node {node.name}: lost a worker ({reason}); another worker takes over its shard")
        return [ShardProgress(worker.shard, -worker.rows, is_lost=True)]

    def _count_loss(self, worker: _RunningWorker, reason: str) -> None:
        """Count a loss for the worker's node. A node that is still alive and lost several workers in a row gets no more work."""
        node = worker.node
        self._refreshed_at = 0.0
        self._refresh_nodes()
        node.count_loss(worker.started_at, time.monotonic())
        if node.id in self._nodes and node.losses >= _MAX_LOSSES and not node.refusal:
            node.refusal = f"node {node.name}: {_MAX_LOSSES} workers in a row were lost on it, the last by {reason}"
            self._warn_refused(node)

    def _kill(self, worker: _RunningWorker) -> None:
        self._workers.remove(worker)
        self.ray.kill(worker.actor)

    def _check_nodes_left(self) -> None:
        """Raises NstError if all nodes are refused. If there are no nodes, one may still join."""
        refused = [node.refusal for node in self._nodes.values() if node.refusal]
        if refused and len(refused) == len(self._nodes):
            raise NstError(f"no usable node is left: {refused[-1]}")
        if not self._nodes:
            self._report_once("nodes", "no node of the cluster has room for a worker any more; waiting for one to join")

    def _report_once(self, topic: str, line: str) -> None:
        if topic not in self._reported:
            self._reported.add(topic)
            self.progress.say(line)


def loss_reason(error: Exception) -> str:
    """The reason that Ray gives for the end of a worker, without the fact that it ended and its ID."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return _HEX.sub("", lines[min(1, len(lines) - 1)]).rstrip(".")[:_MAX_CHARACTERS] if lines else type(error).__name__
