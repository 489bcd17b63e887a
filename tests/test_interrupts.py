"""Ctrl-C ends a wait of the main thread, whatever Polars does with the signal."""

import signal
import subprocess
import sys

WAITS = """
import signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is not there where the tests run in the background of a shell
import polars
from nst_data.arguments import with_checked_arguments

@with_checked_arguments
def wait():
    print("waiting", flush=True)
    threading.Event().wait()

wait()
"""


def test_ctrl_c_ends_a_wait_of_the_main_thread():
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
        finally:
            process.kill()
