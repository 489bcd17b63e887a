"""A Spark cluster on this machine, of PySpark's own programs: a master, and workers with one core each.

with cluster(top) as spark: ...        `spark.url` is what `--master` takes
python tests/spark_cluster.py TOP 1g   runs two workers, with as much memory for executors, until Ctrl-C
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pyspark

PROGRAM = Path(pyspark.__file__).parent / "bin" / "spark-class"


class Cluster:
    """Its processes write what they do below `top`; each worker has `memory` for executors."""

    def __init__(self, top, memory):
        self._top, self._memory, self._processes = Path(top), memory, []
        self._master = self._start("master", "Master", "--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
        self.url = f"spark://127.0.0.1:{self._logged_port('sparkMaster')}"
        self._page = f"http://127.0.0.1:{self._logged_port('MasterUI')}/json/"
        self.workers = []

    def add_worker(self, instead_of=None, shows=None):
        """One more. `instead_of` a folder that all see it may have its own, which holds a copy of `shows`."""
        name = f"worker-{len(self._processes)}"
        words = [self.url, "--host", "127.0.0.1", "--webui-port", "0", "--cores", "1"]
        words += ["--memory", self._memory, "--work-dir", str(self._top / name)]
        script = 'mount -t tmpfs none "$1" && cp -r "$2"/. "$1" && shift 2 && exec "$@"'
        apart = ["unshare", "-m", "sh", "-c", script, "sh", str(instead_of), str(shows)] if instead_of else []
        workers = len(self._state()["workers"])
        self.workers.append(self._start(name, "Worker", *words, before=apart))
        self._wait(lambda: len(self._state()["workers"]) > workers, self.workers[-1], name)

    def kill(self, worker):
        """Kill a worker, as when its machine loses power."""
        executors = psutil.Process(worker.pid).children()
        for process in (worker, *executors):
            process.kill()
        worker.wait()
        self.workers.remove(worker)

    def executors(self):
        """The processes that compute at the moment."""
        return [process for worker in self.workers if worker.poll() is None for process in psutil.Process(worker.pid).children()]

    def is_idle(self):
        """Whether no application has cores or memory."""
        return not self._state()["activeapps"]

    def stop(self):
        """End all processes, and wait until they have ended."""
        executors = self.executors()
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(timeout=20)
        assert psutil.wait_procs(executors, timeout=20)[1] == []

    def _start(self, name, kind, *arguments, before=()):
        quick = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
        environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "128m", "SPARK_DAEMON_JAVA_OPTS": quick}
        command = [*before, str(PROGRAM), f"org.apache.spark.deploy.{kind.lower()}.{kind}", *arguments]
        with (self._top / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
        return self._processes[-1]

    def _logged_port(self, service):
        def port():
            return re.search(rf"'{service}' on port (\d+)", (self._top / "master.log").read_text())

        return self._wait(port, self._master, "master")[1]

    def _state(self):
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self._page) as answer:
            state = json.load(answer)
        return state | {"workers": [worker for worker in state["workers"] if worker["state"] == "ALIVE"]}

    def _wait(self, condition, process, name):
        until = time.monotonic() + 60
        while not (answer := condition()):
            assert process.poll() is None, (self._top / f"{name}.log").read_text()
            assert time.monotonic() < until, name
            time.sleep(0.05)
        return answer


@contextmanager
def cluster(top, memory="600m"):
    """A cluster with two workers, that ends with the block."""
    found = Cluster(top, memory)
    try:
        for _ in range(2):
            found.add_worker()
        yield found
    finally:
        found.stop()


def main():
    with cluster(*sys.argv[1:]) as found, suppress(KeyboardInterrupt):
        print(found.url, flush=True)
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
