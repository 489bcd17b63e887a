import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
TENSORS, BYTES = 10, 64 * 2**20
PAGES = BYTES // 4096
WORK = f"""
import json, os, resource, torch
from nst_data.freed_memory import keep_freed_memory, return_freed_memory
def pages():
    return int(open("/proc/self/statm").read().split()[1])
def faults(times=1):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TENSORS}):
        torch.ones(times * {BYTES // 4})
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with keep_freed_memory():
    faults()  # until small things have found their places
    inside = faults()
    if (worker := os.fork()) == 0:
        return_freed_memory()
        os._exit(faults(4) < {4 * TENSORS * PAGES} / 2)  # which no gap among what was kept has room for
    forked = os.waitpid(worker, 0)[1]
    kept = pages()
with keep_freed_memory(max_block_bytes={BYTES}):
    too_large = faults(4)
print(json.dumps([inside, kept - pages(), faults(4), forked, too_large]))
"""


def faults_of(**environment):
    """Pages cleared for tensors of one size, returned in the end, cleared after it for larger ones, 0 for as many in a worker, and
    pages cleared for larger ones than are to be kept."""
    done = subprocess.run([sys.executable, "-c", WORK], env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_memory_that_a_tensor_freed_serves_the_next_one_and_is_returned_in_the_end_and_in_workers():
    inside, returned, after, forked, too_large = faults_of()
    assert inside < 3 * PAGES
    assert returned > PAGES / 2
    assert after > 4 * TENSORS * PAGES / 2
    assert forked == 0
    assert too_large > 4 * TENSORS * PAGES / 2


@pytest.mark.parametrize("environment", [{"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {"MALLOC_ARENA_MAX": "4"}])
def test_malloc_stays_as_the_environment_tunes_it(environment):
    assert faults_of(**environment)[0] > TENSORS / 2 * PAGES
