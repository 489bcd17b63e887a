"""One policy of retries for every call to the Hub that may be made twice; huggingface_hub retries some of them, and most only once."""

import logging
import socket
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from nst_data.errors import first_line, secrets_cut
from nst_data.hub.errors import causes_of

T = TypeVar("T")
_log = logging.getLogger(__name__)

WAITS_SECONDS = (1, 2, 4, 8)
_LONGEST_WAIT_SECONDS = 300
_ITSELF_RETRIED_SECONDS = 10  # huggingface_hub tries to connect again for half a minute in some of its calls: that is enough
_TOO_MANY = 429


def retried(call: Callable[[], T], waits: Sequence[float] = WAITS_SECONDS, or_path: bool = False) -> T:
    """What a call to the Hub gives; made once more after each wait, where the Hub is busy or the connection broke.

    `or_path` is for references that may have been meant as paths: where there is no network, a mistyped path is told at once.
    """
    if or_path:
        check_hub_resolves()
    for wait in waits:
        began = time.monotonic()
        try:
            return call()
        except Exception as error:
            was_retried = time.monotonic() - began > _ITSELF_RETRIED_SECONDS
            pause = _pause(error, wait, or_path or was_retried)
            if pause is None:
                raise
            _log.info("the Hub: %s; asked again in %g s", secrets_cut(first_line(error)), pause)
            time.sleep(pause)
    return call()


def check_hub_resolves() -> None:
    """Raises httpx.ConnectError where the Hub's name is not known to this machine, as without a network: huggingface_hub would try again
    for up to a minute, in silence. Behind a proxy the name is the proxy's to know.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    place = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return
    for wait in (1, 2, None):
        began = time.monotonic()
        try:
            socket.getaddrinfo(place.hostname, place.port)  # no service by name: small images of Linux know none
            return
        except socket.gaierror as error:
            was_asked_again = time.monotonic() - began > 1  # by the resolver itself, of a server that does not answer
            if wait is None or error.errno != socket.EAI_AGAIN or was_asked_again:
                raise httpx.ConnectError(str(error)) from error
            time.sleep(wait)  # a resolver that is busy, or has just started


def _pause(error: Exception, wait: float, gives_up_offline: bool) -> float | None:
    """Seconds to wait before a call is made again; None where that would not help."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    causes = causes_of(error)
    response = next((cause.response for cause in causes if isinstance(cause, HfHubHTTPError) and cause.response is not None), None)
    if response is not None:
        status, after = response.status_code, response.headers.get("Retry-After", "")
        if status == _TOO_MANY and after.isdigit():
            return min(float(after), _LONGEST_WAIT_SECONDS)
        return wait if status == _TOO_MANY or status >= 500 else None
    hopeless = (OfflineModeIsEnabled, *([httpx.ConnectError] if gives_up_offline else []))
    if any(isinstance(cause, hopeless) for cause in causes):
        return None
    return wait if any(isinstance(cause, httpx.TransportError | ConnectionError) for cause in causes) else None
