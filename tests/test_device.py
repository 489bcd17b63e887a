import json
import os
import platform
import subprocess
import sys

import pytest

PAGE = 4096
TENSORS, BYTES = 20, 64 * 2**20
FAULTS = f"""
import json, resource, torch
from nst_train.device import keep_freed_memory, release_memory
keep_freed_memory()
def held():
    return int(open("/proc/self/statm").read().split()[1])
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first = torch.ones({BYTES // 4})
del first
before = faults()
for _ in range({TENSORS}):
    torch.ones({BYTES // 4})
after, kept = faults(), held()
release_memory()
print(json.dumps([after - before, kept - held()]))
"""


def faults_and_released(**environment):
    """Pages that were cleared for tensors of one size one after the other, and pages given back in the end."""
    done = subprocess.run([sys.executable, "-c", FAULTS], env=os.environ | environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_memory_that_a_tensor_freed_serves_the_next_one_and_is_released_in_the_end():
    faults, released = faults_and_released()
    assert faults < 2 * BYTES / PAGE
    assert released > BYTES / PAGE / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
@pytest.mark.parametrize("environment", [{"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {"MALLOC_ARENA_MAX": "4"}])
def test_malloc_stays_as_the_environment_tunes_it(environment):
    assert faults_and_released(**environment)[0] > TENSORS / 2 * BYTES / PAGE
