"""Ctrl-C while the main thread waits for others, such as for reads from a server that is silent."""

import signal


def heed_interrupts() -> None:
    """Have Ctrl-C end a wait of the main thread.

    Polars handles the signal too once it is imported, and has the system begin what it interrupts anew (SA_RESTART): Python, which would
    raise KeyboardInterrupt then, is not asked before the wait is over. The handlers stay as they are.
    """
    if hasattr(signal, "siginterrupt"):  # not on Windows, where nothing is begun anew
        signal.siginterrupt(signal.SIGINT, True)
