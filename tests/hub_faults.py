"""What goes wrong at the test Hub, and when: each fault is one rule, given to `serving(top, faults)`.

    Fault("commit", 500)                       the first commit is answered 500, and not done
    Fault("lfs put", 429, times=2)             the first two uploads are put off, with Retry-After: 1
    Fault("tag", "lost")                       the tag is set, and the connection cut before the answer
    Fault("refs", "cut", times=ALWAYS)         no refs, ever: the connection is cut before anything is done
    Fault("lfs get", "half", first=3)          the third large file ends in the middle
    Fault("resolve", "flip", path="labels/")   the first regular file with labels/ in its address has one byte changed
    stop = Fault("lfs put", "stop", first=2)   the second upload waits to be cut: `stop.arrived.wait(30)`, kill the client, `stop.go.set()`
    hold = Fault("commit", "hold")             the first commit waits for `hold.go.set()`, and is done then

The calls are the names in `hub_calls.ROUTES`. A file's content is "resolve" or, for a large one, "lfs get", to which "resolve" redirects.
"""

import math
import threading
from dataclasses import dataclass, field

ALWAYS = math.inf
KINDS = ("cut", "lost", "half", "flip", "stop", "hold")
_LOCK = threading.Lock()


@dataclass
class Fault:
    """`kind` befalls the `first` and the following calls of that name, `times` in all."""

    call: str
    kind: int | str
    first: int = 1
    times: float = 1
    path: str = ""
    seen: int = 0
    arrived: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        assert isinstance(self.kind, int) or self.kind in KINDS, self.kind

    def matches(self, call, path):
        """Count a call; whether this is one of those that the fault is about."""
        if call != self.call or self.path not in path:
            return False
        with _LOCK:
            self.seen += 1
            hit = self.first <= self.seen < self.first + self.times
        if hit:
            self.arrived.set()
        return hit
