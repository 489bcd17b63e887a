"""`datasets` without bars and remarks of its own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """What it raises says what went wrong; nothing that it logs on the way reaches the screen."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    had_bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()
