"""The Hugging Face Hub: what goes wrong there as one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from nst_data.errors import NstError, first_line


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises about `what` into an NstError of one line, without any token."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError:
        raise NstError(f"{what}: its owner asks for consent; accept the terms on the Hub, then `hf auth login`") from None
    except hub.RevisionNotFoundError:
        raise NstError(f"{what}: the repository has no such revision; name a branch, a tag or a commit that is there") from None
    except hub.RepositoryNotFoundError:
        raise NstError(f"{what}: no such repository on {constants.ENDPOINT}, or a private one; correct it or `hf auth login`") from None
    except hub.LocalEntryNotFoundError as error:
        offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise NstError(f"{what}: not in the local cache and {constants.ENDPOINT} was not reached{offline}; {first_line(error)}") from None
    except hub.EntryNotFoundError as error:
        raise NstError(f"{what}: a file is missing in the repository: {first_line(error)}") from None
    except hub.HFValidationError as error:
        raise NstError(f"{what}: expected OWNER/NAME[@REVISION]: {first_line(error)}") from None
    except (hub.HfHubHTTPError, hub.OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise NstError(f"{what}: {constants.ENDPOINT} did not answer as expected: {first_line(error)}; try again later") from None
