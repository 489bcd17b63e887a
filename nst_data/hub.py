"""The Hugging Face Hub: what its libraries raise, as one line that says what to do.

No text of theirs passes: it may hold addresses and headers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from nst_data.errors import NstError

_LOG_IN = "log in with `hf auth login`"


@contextmanager
def plain_errors(reference: str, what: Literal["dataset", "model"] = "dataset") -> Iterator[None]:
    """Turn errors about a dataset or model of the Hub into NstError."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    try:
        yield
    except NstError:
        raise
    except (HfHubHTTPError, HFValidationError, DatasetsError, httpx.HTTPError, OSError, RuntimeError, ValueError, ImportError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of this machine: a full disk, no permission
        raise NstError(f"{reference}: {_reason(error, what)}") from None


def _reason(error: Exception, what: str) -> str:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    causes = _chain(error)
    here = "no such file or folder here, and " if what == "dataset" else ""

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(errors.OfflineModeIsEnabled):
        return f"{here}HF_HUB_OFFLINE keeps from asking the Hub; unset it or give a path"
    if caused_by(errors.GatedRepoError) or (caused_by(DatasetNotFoundError) and "gated" in str(error)):
        return f"the Hub wants you to ask for access on the {what}'s page first; then {_LOG_IN}"
    if caused_by(errors.RepositoryNotFoundError, errors.HFValidationError):
        return f"{here}no such {what} on the Hub; correct it or, for a private one, {_LOG_IN}"
    if caused_by(errors.RevisionNotFoundError):
        return f"the {what} on the Hub has no such revision; give a branch, tag or commit that it has"
    if caused_by(DataFilesNotFoundError, EmptyDatasetError):
        return "the dataset on the Hub holds no data files that `datasets` knows; expected parquet, tar, images or the like"
    if caused_by(errors.EntryNotFoundError) and not caused_by(httpx.TransportError):
        return f"the {what} on the Hub lacks a file that is needed; try again or take another revision"
    if caused_by(DatasetGenerationError):
        return f"datasets cannot read its files ({type(causes[-1]).__name__}); see `load_dataset` for the whole error"
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None:
            return f"the Hub answered {cause.response.status_code}; try again later"
    if caused_by(httpx.HTTPError, ConnectionError, TimeoutError):
        return f"{here}the Hub cannot be reached; check the path, or the network"
    if "Data files don't belong to" in str(error):
        return "its card names data files that are not in the repo; expected files of its own"
    if "scripts are no longer supported" in str(error):
        return "the dataset is a script, and nothing that lies in a repo is run; take one with data files"
    return f"cannot be read from the Hub ({type(error).__name__})"


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and those that it came from."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
