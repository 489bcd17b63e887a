"""One retry policy for all calls to the Hub that are safe to repeat; huggingface_hub retries only some of them, and most only once."""

import logging
import socket
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from nst_data.errors import first_line, redact_secrets
from nst_data.hub.errors import causes_of

T = TypeVar("T")
_log = logging.getLogger(__name__)

WAITS_SECONDS = (1, 2, 4, 8)
_LONGEST_WAIT_SECONDS = 300
_OWN_RETRY_SECONDS = 10  # in some calls huggingface_hub itself retries connecting for half a minute, which is enough
_TOO_MANY = 429


def call_with_retries(call: Callable[[], T], waits: Sequence[float] = WAITS_SECONDS, may_be_path: bool = False) -> T:
    """The result of a call to the Hub, repeated after each wait if the Hub is busy or the connection breaks.

    `may_be_path` is for references that may have been meant as paths: without a network, a mistyped path is then reported immediately.
    """
    if may_be_path:
        check_hub_resolves()
    for wait in waits:
        start_time = time.monotonic()
        try:
            return call()
        except Exception as error:
            was_retried = time.monotonic() - start_time > _OWN_RETRY_SECONDS
            pause = _retry_wait(error, wait, may_be_path or was_retried)
            if pause is None:
                raise
            _log.info("the Hub: %s; retrying in %g s", redact_secrets(first_line(error)), pause)
            time.sleep(pause)
    return call()


def check_hub_resolves() -> None:
    """Raise httpx.ConnectError if the Hub's name cannot be resolved, as without a network.

    huggingface_hub would silently retry for up to a minute. Behind a proxy nothing is checked, as the proxy resolves the name.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    endpoint = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return
    for wait in (1, 2, None):
        start_time = time.monotonic()
        try:
            socket.getaddrinfo(endpoint.hostname, endpoint.port)  # without a service name, which minimal Linux images cannot resolve
            return
        except socket.gaierror as error:
            was_retried = time.monotonic() - start_time > 1  # the resolver itself has retried a server that does not answer
            if wait is None or error.errno != socket.EAI_AGAIN or was_retried:
                raise httpx.ConnectError(str(error)) from error
            time.sleep(wait)  # the resolver is busy, or has just started


def _retry_wait(error: Exception, wait: float, gives_up_offline: bool) -> float | None:
    """Seconds to wait before repeating a call, or None if repeating it would not help."""
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
