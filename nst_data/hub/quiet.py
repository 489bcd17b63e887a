"""Silence the progress bars and log messages of the Hugging Face libraries."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal


@contextmanager
def quiet(library: Literal["datasets", "huggingface_hub.utils"]) -> Iterator[None]:
    """Silence a library: its exceptions say what went wrong, and nst shows the progress of pushes and pulls itself."""
    module = importlib.import_module(library)
    had_bars, verbosity = not module.are_progress_bars_disabled(), module.logging.get_verbosity()
    module.disable_progress_bars()
    module.logging.set_verbosity(module.logging.CRITICAL)
    try:
        yield
    finally:
        module.logging.set_verbosity(verbosity)
        if had_bars:
            module.enable_progress_bars()


def bars_only_on_terminal() -> AbstractContextManager[None]:
    """Keep progress bars of downloads on a terminal; silence them in a file or a pipe, where they would be noise."""
    return nullcontext() if sys.stderr.isatty() else quiet("huggingface_hub.utils")
