"""What tests watch of long work, and how they end it."""

from contextlib import contextmanager

from nst_data.progress import Progress


class RecordingProgress(Progress):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class InterruptAfter(Progress):
    """Ends the work by an error, as a kill would, once more than so many images are done."""

    def __init__(self, images, error=KeyboardInterrupt):
        self._left, self._error = images, error

    @contextmanager
    def task(self, name, total, unit, done=0):
        yield self

    def advance(self, amount, note=""):
        self._left -= amount
        if self._left < 0:
            raise self._error
