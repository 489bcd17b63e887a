"""The Ray cluster that this process has joined: its nodes, and how many workers fit on each."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nst_data.errors import NstError, UsageError, first_line
from nst_train.cluster_settings import ClusterSettings

_CONNECT_TIMEOUT_SECONDS = 10.0


@dataclass
class Node:
    """A machine of the cluster, with room for `capacity` workers of `cpus` CPUs each."""

    id: str
    name: str
    capacity: int
    cpus: int
    losses: int = field(default=0)  # of workers in a row, with no shard completed in between
    lost_at: float = field(default=0.0)  # time of the last loss
    is_checked: bool = field(default=False)
    refusal: str = field(default="")  # why it gets no work

    def count_loss(self, started_at: float, now: float) -> None:
        """Count a lost worker, whose current work started at `started_at`; workers that are lost in one event count as one loss."""
        if started_at >= self.lost_at:
            self.losses += 1
            self.lost_at = now


@contextmanager
def connect_cluster(settings: ClusterSettings) -> Iterator[Any]:
    """The module `ray`, connected to the cluster; an existing connection of the user is used and left open.

    Raises UsageError if Ray is not installed or no cluster answers.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("`engine` ray: expected one process, which hands the work to Ray; start it without torchrun or accelerate")
    try:
        import ray
    except ImportError:
        raise UsageError("`engine` ray: expected Ray, found none; pip install 'nst[ray]', or leave out `engine`") from None
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(settings.address)
    with _restore_sigterm():
        try:
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = first_line(error).partition(". ")[0].rstrip(".")
            raise UsageError(f"`address` {settings.address}: no Ray cluster there ({reason}); `ray start` starts one") from None
    try:
        with _silence_ray():
            yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises UsageError if nothing listens at an address: Ray would retry for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"`address` {address}: no Ray cluster there ({first_line(error)}); `ray start` starts one") from None


@contextmanager
def _restore_sigterm() -> Iterator[None]:
    """Restore our SIGTERM handler, which interrupts work, after Ray has installed its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _silence_ray() -> Iterator[None]:
    """Keep Ray from printing pages about a node that died on standard output, where results go; it has no option for that."""
    internals: Any = sys.modules.get("ray._private.worker")
    printing = getattr(internals, "print_to_stdstream", None)
    if printing is None:
        yield
        return
    internals.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        internals.print_to_stdstream = printing


def usable_nodes(ray: Any, settings: ClusterSettings) -> list[Node]:  # noqa: ANN401 - the module
    """The live nodes that have room for a worker."""
    nodes = [_create_node(about, settings) for about in ray.nodes() if about["Alive"]]
    return [node for node in nodes if node.capacity]


def _create_node(entry: dict[str, Any], settings: ClusterSettings) -> Node:
    gpus, cpus = entry["Resources"].get("GPU", 0), int(entry["Resources"].get("CPU", 0))
    capacity = int(gpus / settings.gpus_per_worker + 1e-6) if settings.gpus_per_worker else 1 if settings.cpus_per_worker is None else cpus
    per_worker = settings.cpus_per_worker or max(1, cpus // max(1, capacity))
    capacity = min(capacity, cpus // per_worker)
    host, address = entry["NodeManagerHostname"], entry["NodeManagerAddress"]
    return Node(entry["NodeID"], f"{host} ({address})", capacity, per_worker)


def no_room_error(ray: Any, settings: ClusterSettings) -> NstError:  # noqa: ANN401 - the module
    """The error for a cluster in which no node has room for a worker."""
    nodes = [entry["Resources"] for entry in ray.nodes() if entry["Alive"]]
    largest = {name: max((entry.get(name, 0) for entry in nodes), default=0) for name in ("GPU", "CPU")}
    advice = "" if largest["GPU"] else "; `gpus_per_worker` 0 works on CPUs"
    return NstError(
        f"`engine` ray: no node has room for a worker of {worker_resources(settings)}: of {len(nodes)} nodes the largest has "
        f"{_format_resources(largest['GPU'], largest['CPU'])}{advice}"
    )


def worker_resources(settings: ClusterSettings) -> str:
    """The resources that a worker requires, in words."""
    return _format_resources(settings.gpus_per_worker, settings.cpus_per_worker or 1)


def _format_resources(gpus: float, cpus: float) -> str:
    return f"{gpus:g} GPU{'s' * (gpus != 1)} and {cpus:g} CPU{'s' * (cpus != 1)}"


def node_names(nodes: Sequence[Node]) -> str:
    """The names of the first three nodes, for messages."""
    return ", ".join(node.name for node in nodes[:3]) + ", ..." * (len(nodes) > 3)
