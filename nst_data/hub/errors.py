"""Turn errors of the Hugging Face libraries into one line that says what to do.

Their own messages are never passed on, as they may contain addresses and headers.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from nst_data.errors import NstError

_LOG_IN = "log in with `hf auth login`"
_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY = 401, 403, 429
_TEMPORARY_STATUSES = (408, 409, 423, 425)  # a retry may succeed


@contextmanager
def translate_hub_errors(
    reference: str, kind: Literal["dataset", "model", "bucket"] = "dataset", writing: bool = False, may_be_path: bool = False
) -> Iterator[None]:
    """Turn errors about a dataset, model or bucket of the Hub into NstError.

    `writing` is for calls that change it; `may_be_path` is for references that the user may have meant as local paths.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    try:
        yield
    except NstError:
        raise
    except (HfHubHTTPError, HFValidationError, DatasetsError, httpx.HTTPError, OSError, RuntimeError, ValueError, ImportError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # a local error, such as a full disk or missing permission
        raise NstError(f"{reference}: {_reason(error, kind, writing, may_be_path)}") from None


def not_found_message(kind: str) -> str:
    """The Hub has no such repository, or none that this user may see."""
    return f"no such {kind} on the Hub; correct it or, for a private one, {_LOG_IN}"


def _reason(error: Exception, kind: str, writing: bool, may_be_path: bool) -> str:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub import errors, get_token
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    causes = causes_of(error)
    lead = "no such file or folder here, and " if may_be_path else ""

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(errors.OfflineModeIsEnabled):
        return f"{lead}HF_HUB_OFFLINE is set, so the Hub is not asked; unset it{' or give a path' * may_be_path}"
    status = next(
        (cause.response.status_code for cause in causes if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None), 0
    )
    missing = (errors.RepositoryNotFoundError, errors.BucketNotFoundError)
    is_refused = status == _UNAUTHORIZED and (writing or not caused_by(*missing))
    if caused_by(errors.LocalTokenNotFoundError) or (is_refused and get_token() is None):
        return f"you are not logged in to the Hub; {_LOG_IN}, or set HF_TOKEN"
    if is_refused:
        return f"the Hub rejects your token; {_LOG_IN} again, with a token that has write access"
    if status == _FORBIDDEN and writing:  # the Hub also answers 403 if the storage is full
        access = "your token has no write access there, or the account's storage is full"
        return f"{access}; use a repository of your own, a token with write access, or make room"
    if caused_by(errors.GatedRepoError) or (caused_by(DatasetNotFoundError) and "gated" in str(error)):
        return f"it is gated: request access on the {kind}'s page, then {_LOG_IN}"
    if caused_by(*missing, errors.HFValidationError):
        return lead + not_found_message(kind)
    if caused_by(errors.RevisionNotFoundError):
        return f"the {kind} on the Hub has no such revision; give a branch, tag or commit that it has"
    if caused_by(DataFilesNotFoundError, EmptyDatasetError):
        return "the dataset on the Hub holds no data files that `datasets` knows; expected parquet, tar, images or the like"
    if caused_by(errors.EntryNotFoundError) and not caused_by(errors.LocalEntryNotFoundError):  # the latter means any failed call
        return f"the {kind} on the Hub lacks a required file; retry, or use another revision"
    if caused_by(DatasetGenerationError):
        return f"datasets cannot read its files ({type(causes[-1]).__name__}); see `load_dataset` for the whole error"
    if status == _FORBIDDEN:
        return f"your token has no read access to this {kind}; ask its owner for access, or {_LOG_IN} with another one"
    if status == _TOO_MANY:
        return "the Hub answered 429, too many requests; run the same command again in some minutes"
    if writing and any("Invalid metadata in README.md" in str(cause) for cause in causes):
        return "the Hub rejects the metadata at the top of the card; correct README.md, or give the license with `license`"
    if 400 <= status < 500 and status not in _TEMPORARY_STATUSES:
        return f"the Hub rejects the request ({status}); check the names in it, and that huggingface_hub is up to date"
    if status:
        return f"the Hub answered {status}; try again later"
    if caused_by(httpx.HTTPError, ConnectionError, TimeoutError):
        no_xet = "; for a Hub without Xet set HF_HUB_DISABLE_XET=1" * writing
        return (
            f"{lead}the Hub cannot be reached ({_unreachable_reason(causes)}); check {'the path, ' * may_be_path}the network and "
            f"HF_ENDPOINT{no_xet}"
        )
    if "Data files don't belong to" in str(error):
        return "its card names data files that are not in the repo; expected files of its own"
    if "scripts are no longer supported" in str(error):
        return "the dataset is a script, and nst runs no code of a repository; use one with data files"
    return f"cannot be {'written to' if writing else 'read from'} the Hub ({type(error).__name__})"


def _unreachable_reason(causes: list[BaseException]) -> str:
    """The operating system's message, or the kind of error in words; any other text may contain a signed address."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    for cause in reversed(causes):
        if isinstance(cause, socket.gaierror):
            return "its name could not be resolved"
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
            return os.strerror(cause.errno).lower()
    if any(isinstance(cause, httpx.TimeoutException | TimeoutError) for cause in causes):
        return "no answer in time"
    if any(isinstance(cause, httpx.ConnectError) for cause in causes):
        return "no connection"
    return "the connection broke"


def causes_of(error: BaseException | None) -> list[BaseException]:
    """The error, followed by its chain of causes."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
