"""Errors of storage clients in nst's own words.

Nothing that a server says is repeated: it may contain signatures and addresses.
"""

import errno

from nst_data.hub.errors import causes_of

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_ENDPOINTS = {"s3": " and AWS_ENDPOINT_URL", "azure": " and the name of the account"}
_TEMPORARY_ERRNOS = (errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE)
_CREDENTIAL_ERRORS = frozenset(
    [
        *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError", "RefreshError"),
        *("ClientAuthenticationError", "AzureSigningError"),  # Azure's; its client also raises the first for status 403
    ]
)
_UNREACHABLE_ERRORS = frozenset(
    ["EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ClientConnectorDNSError", "ConnectError"]
)
_CONNECTION_ERRORS = frozenset(
    [
        *("ReadTimeoutError", "ConnectionClosedError", "HTTPClientError", "IncompleteReadError", "ClientPayloadError", "IncompleteRead"),
        *("ResponseStreamingError", "ServerDisconnectedError", "ClientOSError", "FSTimeoutError", "ContentLengthError", "BadDigest"),
        *("ServerTimeoutError", "SocketTimeoutError", "ProxyConnectionError", "ClientResponseError", "IncompleteBody", "HfHubHTTPError"),
        *("ServiceRequestError", "ServiceResponseError", "ServiceRequestTimeoutError", "ServiceResponseTimeoutError"),  # Azure's
        *("ProxyError", "TransportError"),  # Google's; its client raises the first for status 502
    ]
)


def explain_error(error: BaseException, storage: str) -> tuple[str, bool]:
    """What went wrong at a storage, which is given by the name of its extra, and whether it may be temporary."""
    causes = causes_of(error)
    names = {type(cause).__name__ for cause in causes}
    codes = {code_of(cause) for cause in causes}
    if isinstance(error, FileNotFoundError):
        return ("no such bucket" if "NoSuchBucket" in codes else "no such file"), False
    if "RequestTimeTooSkewed" in codes:
        return "the server refuses this machine's clock, which differs from its own; set the clock", False
    if isinstance(error, PermissionError) or codes & {"403", "401", "AccessDenied"}:
        return "access denied (403); check the credentials and what they may do there", False
    if names & _CREDENTIAL_ERRORS or _lacks_account(error):
        return f"no usable credentials found; set {_CREDENTIALS.get(storage, 'what your storage uses')}", False
    if codes & {"503", "SlowDown", "ServiceUnavailable", "429"}:
        return "the server is busy (503)", True
    if codes & {"500", "502", "504", "InternalError"}:
        return "the server failed (500)", True
    if names & _UNREACHABLE_ERRORS:
        return f"the server cannot be reached; check the network{_ENDPOINTS.get(storage, '')}", True
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, TimeoutError | ConnectionError) or (names | codes) & _CONNECTION_ERRORS or number in _TEMPORARY_ERRNOS:
        return "the connection broke or was silent for too long", True
    if "400" in codes or number == errno.EINVAL:  # aiohttp also reports a truncated response as 400
        return "the server rejects the request (400); check the address", False
    return f"cannot be read or written ({type(error).__name__})", False


def is_missing_file(error: BaseException) -> bool:
    """Whether a file is missing from a bucket or repository that exists."""
    causes = causes_of(error)
    missing = {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "BucketNotFoundError"}
    bucket_errors = missing & {type(cause).__name__ for cause in causes}
    return isinstance(error, FileNotFoundError) and not bucket_errors and "NoSuchBucket" not in map(code_of, causes)


def code_of(error: BaseException) -> str:
    """The code of a server's response, such as `SlowDown` or `503`."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # Amazon's client
        return str(response.get("Error", {}).get("Code", ""))
    if type(error) is OSError and str(error).startswith("Forbidden: "):  # Google's client
        return "403"
    return str(getattr(response, "status_code", "") or getattr(error, "status", "") or getattr(error, "code", ""))


def _lacks_account(error: BaseException) -> bool:
    """Whether Azure's client was given neither an account nor a connection string, or an invalid one."""
    return isinstance(error, ValueError) and str(error).startswith("unable to connect to account")
