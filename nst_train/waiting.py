"""How threads that compute wait for one another. Imports no torch, which reads it when it is imported."""

import os

_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # the second is libgomp's, which heeds it over the first


def wait_passively() -> None:
    """Threads of OpenMP that wait for one another soon sleep, rather than spin, unless the user says how they wait.

    Spinning takes the CPU from whatever else runs, the workers that decode images first of all; a thousand turns, some ten microseconds,
    are less than it takes to sleep and wake (benchmarks/results/train.md). Heeded where torch is not yet imported.
    """
    if not any(name in os.environ for name in (*_WAITING, "KMP_BLOCKTIME")):
        os.environ.update(_WAITING)
