"""The Hugging Face libraries without bars and remarks of their own."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
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
