"""Ctrl-C while the main thread waits, for example for reads from a server that does not respond."""

import signal


def make_waits_interruptible() -> None:
    """Make Ctrl-C interrupt waits of the main thread.

    Once imported, Polars also handles the signal and has the system restart interrupted calls (SA_RESTART), so that Python gets to raise
    KeyboardInterrupt only after the wait is over. The handlers themselves stay in place.
    """
    if hasattr(signal, "siginterrupt"):  # missing on Windows, where calls are not restarted
        signal.siginterrupt(signal.SIGINT, True)
