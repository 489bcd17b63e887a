"""How compute threads wait for each other. Imports no torch, which reads these settings on import."""

import os

_OPENMP_SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # the second is libgomp's, and takes precedence there


def wait_passively() -> None:
    """Let waiting OpenMP threads sleep soon instead of spinning, unless the user chose how they wait.

    Spinning takes the CPU from everything else, above all from the workers that decode images; a thousand spins, about ten microseconds,
    take less time than going to sleep and waking up (benchmarks/results/train.md). Has no effect once torch is imported.
    """
    if not any(name in os.environ for name in (*_OPENMP_SETTINGS, "KMP_BLOCKTIME")):
        os.environ.update(_OPENMP_SETTINGS)
