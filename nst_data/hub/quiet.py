"""The Hugging Face libraries without bars and remarks of their own."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal


@contextmanager
def quiet(library: Literal["datasets", "huggingface_hub.utils"]) -> Iterator[None]:
    """What it raises says what went wrong, and our bars tell how far a push or pull is."""
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


def bars_on_terminals() -> AbstractContextManager[None]:
    """For a download whose bars a person may watch; in a file or a pipe they would be noise."""
    return nullcontext() if sys.stderr.isatty() else quiet("huggingface_hub.utils")
