"""One repository of the Hub: its tags, the versions that they name, and the calls that change it.

What huggingface_hub does not try again itself is tried again here, where that is right: nothing that could be done twice.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from nst_data.errors import NstError, UsageError
from nst_data.hub.errors import plain_errors
from nst_data.store.manifest import MANIFEST_NAME, Kind, Manifest, content_digest, parse_manifest
from nst_data.store.places import METRICS, PLACES
from nst_data.store.version import Number

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

RepoKind = Literal["dataset", "model"]
T = TypeVar("T")

_REFERENCE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@:]+))?", re.ASCII)
_WAITS_SECONDS = (1, 2, 4, 8)
_LONGEST_WAIT_SECONDS = 300
_TIMEOUT_SECONDS = 30
_CONFLICT, _CHANGED, _TOO_MANY = 409, 412, 429


def kind_of_repo(kind: Kind) -> RepoKind:
    """Corpora are datasets, teachers are models."""
    return "model" if kind == "teacher" else "dataset"


@dataclass(frozen=True)
class Repository:
    """`owner/name` on the Hub."""

    id: str
    kind: RepoKind = "dataset"
    api: "HfApi" = field(default_factory=lambda: _api(), repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, kind: RepoKind = "dataset") -> tuple[Self, str | None] | None:
        """The repository in `[hf-hub:]owner/name[@revision]`, and the revision; None where the text is something else."""
        match = _REFERENCE.fullmatch(text.removeprefix("hf-hub:"))
        return (cls(match["repo"], kind), match["revision"]) if match else None

    @classmethod
    def named(cls, repo_id: str, kind: RepoKind = "dataset") -> Self:
        """Raises UsageError for what is no `owner/name`."""
        found = cls.parse(repo_id, kind)
        if found is None or found[1] is not None:
            raise UsageError(f"{repo_id}: expected a repository of the Hub, OWNER/NAME, as in alice/flowers-pseudo")
        return found[0]

    def of_either_kind(self) -> "Repository":
        """This, or the model of that name where there is no such dataset."""
        if self.kind == "dataset" and self.is_private() is None:
            model = replace(self, kind="model")
            return model if model.is_private() is not None else self
        return self

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        refs = self.asked(lambda: self.api.list_repo_refs(self.id, repo_type=self.kind))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def head(self) -> tuple[str, list[str]]:
        """The newest commit of the main branch, and its files."""
        info = self.asked(lambda: self.api.repo_info(self.id, repo_type=self.kind, timeout=_TIMEOUT_SECONDS))
        return str(info.sha), [file.rfilename for file in getattr(info, "siblings", None) or []]

    def commit_of(self, revision: str) -> str:
        """The commit that a branch, tag or commit names now."""
        return str(self.asked(lambda: self.api.repo_info(self.id, repo_type=self.kind, revision=revision, timeout=_TIMEOUT_SECONDS)).sha)

    def is_private(self) -> bool | None:
        """None where there is no such repository, or none that this user may see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def look() -> bool | None:
            try:
                return bool(self.api.repo_info(self.id, repo_type=self.kind, timeout=_TIMEOUT_SECONDS).private)
            except RepositoryNotFoundError:
                return None

        return self.asked(look)

    def create(self, private: bool) -> None:
        """Make the repository, where there is none."""
        self.changed(lambda: self.api.create_repo(self.id, repo_type=self.kind, private=private, exist_ok=True))

    def text(self, file: str, commit: str) -> str | None:
        """A small text file at a commit; None where there is none, or none that is text."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        def read() -> str | None:
            try:
                path = self.api.hf_hub_download(self.id, file, repo_type=self.kind, revision=commit)
                return Path(path).read_bytes().decode()  # line ends as they are
            except LocalEntryNotFoundError:
                raise
            except (EntryNotFoundError, UnicodeDecodeError):
                return None

        return self.asked(read)

    def manifest(self, commit: str) -> Manifest | None:
        """The version that stands at a commit, marked as pulled; None where it is none of nst's.

        Raises NstError for a manifest that cannot be trusted.
        """
        text = self.text(MANIFEST_NAME, commit)
        if text is None:
            return None
        try:
            manifest = parse_manifest(text, f"{self.id}@{commit[:12]}: {MANIFEST_NAME}")
            check_foreign(manifest, self)
        except NstError as error:
            raise UntrustedError(str(error)) from None
        return manifest.marked_as_pulled()

    def commit(self, operations: list["CommitOperationAdd | CommitOperationDelete"], message: str, parent: str) -> str | None:
        """Change files in one commit on top of `parent`; None where the main branch is not at `parent` any more."""
        from huggingface_hub.errors import HfHubHTTPError

        def change() -> str | None:
            try:
                done = self.api.create_commit(self.id, operations, commit_message=message, repo_type=self.kind, parent_commit=parent)
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code == _CHANGED:
                    return None
                raise
            return str(done.oid)

        return self.changed(change, _WAITS_SECONDS[:1])  # huggingface_hub tries again itself, but for its first question

    def upload(self, files: list["CommitOperationAdd"]) -> None:
        """Bring large files there, ahead of the commit that will show them; those that are there already are not sent."""
        with plain_errors(self.id, self.kind, writing=True):
            self.api.preupload_lfs_files(self.id, additions=files, repo_type=self.kind)

    def tag(self, name: str, commit: str) -> bool:
        """Name a commit; whether the name was free. A tag that is there stays as it is."""
        from huggingface_hub.errors import HfHubHTTPError

        def name_it() -> bool:
            try:
                self.api.create_tag(self.id, tag=name, revision=commit, repo_type=self.kind)
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code == _CONFLICT:
                    return False
                raise
            return True

        return self.changed(name_it)

    def download(self, file: str, commit: str, folder: Path) -> None:
        """Bring a file of a commit below a folder. Raises NstError with one line."""

        def bring(place: Path | str) -> None:
            self.api.hf_hub_download(self.id, file, repo_type=self.kind, revision=commit, local_dir=place)

        def call() -> None:
            if _locks_files(folder):  # the client locks what it writes
                return bring(folder)
            with tempfile.TemporaryDirectory(prefix="nst-") as elsewhere:
                bring(elsewhere)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(elsewhere, file), folder / file)

        self.asked(call)

    def asked(self, call: Callable[[], T]) -> T:
        """What a question to the Hub gives. Raises NstError with one line."""
        with plain_errors(self.id, self.kind):
            return _tried_again(call)

    def changed(self, call: Callable[[], T], waits: Sequence[float] = _WAITS_SECONDS) -> T:
        """What a change of the repository gives. Raises NstError with one line."""
        with plain_errors(self.id, self.kind, writing=True):
            return _tried_again(call, waits)


class UntrustedError(NstError):
    """A manifest on the Hub that is damaged, hostile or of a later nst."""


def newest(tags: dict[str, str], edition: bool | None = None) -> str | None:
    """The tag with the highest version number, of editions or of generations where that is asked; None where none is a version."""
    numbers = {tag: Number.parse(tag) for tag in tags if Number.is_one(tag)}
    wanted = [tag for tag, number in numbers.items() if edition in (None, number.edition is not None)]
    return max(wanted, key=lambda tag: numbers[tag].order, default=None)


def _locks_files(folder: Path) -> bool:
    """Whether files of a folder can be locked."""
    try:
        import fcntl
    except ImportError:  # Windows can
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


_NOT_SEALED = (MANIFEST_NAME, PLACES, METRICS)
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
_COUNTS = {"generation": ("labeled", "pool", "errors"), "edition": ("labeled", "unique", "copies"), "teacher": ("parameters", "steps")}
# an adapter_config.json, say, would have transformers load what it names
_OF_TEACHER = re.compile(r"config\.json|preprocessor_config\.json|[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors(\.index\.json)?", re.ASCII)
_FILE = re.compile(r"([A-Za-z0-9_]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*\.(parquet|safetensors|json|txt)", re.ASCII)


def check_foreign(manifest: Manifest, repository: Repository) -> None:
    """Raises NstError for a manifest of a repository whose names lead out of the store or are no text."""
    from nst_data.store.store import check_name

    try:
        check_name(manifest.name)
        is_number = Number.is_one(manifest.version) and str(Number.parse(manifest.version)) == manifest.version
    except UsageError:
        is_number = False
    known = _OF_TEACHER if manifest.kind == "teacher" else _FILE
    odd = next((name for name in manifest.files if not known.fullmatch(name) or name in _NOT_SEALED), None)
    if not is_number:
        problem = f"the name {manifest.name[:40]!r} and version {manifest.version[:40]!r}"
    elif kind_of_repo(manifest.kind) != repository.kind:
        problem = f"a {manifest.kind} in a {repository.kind} repository"
    elif odd is not None:
        problem = f"the file name {odd[:80]!r}"
    elif not all(text.isprintable() for text in _texts(manifest.model_dump())):
        problem = "a name that holds control characters"
    elif not _DATE.match(manifest.created):
        problem = "no date"
    elif manifest.kind == "teacher" and not isinstance(manifest.request.settings.get("model"), str):
        problem = "no name of a network"
    elif content_digest(manifest.request, manifest.files, manifest.class_names) != manifest.digest:
        problem = "a digest that is not that of its settings, inputs and files"
    elif missing := next((one for one in _COUNTS[manifest.kind] if not isinstance(manifest.counts.get(one), int)), None):
        problem = f"no number of {missing}"
    elif not all(_are_counts(manifest.counts.get(one) or {}) for one in ("dropped", "per_class")):
        problem = "no numbers of images by class or reason"
    else:
        return
    raise NstError(
        f"{repository.id}: its manifest has {problem}, which nst does not write; it is damaged or hostile, nothing was taken from it"
    )


def _are_counts(value: object) -> bool:
    """Whether a value is a mapping to numbers, or to mappings to numbers."""
    return isinstance(value, dict) and all(isinstance(one, int) or _are_counts(one) for one in value.values())


@contextmanager
def quietly() -> Iterator[None]:
    """Without huggingface_hub's own bars and remarks: ours tell how far a push or pull is."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging  # type: ignore[attr-defined]

    had_bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """All texts in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from (str(key), *_texts(one))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="nst")


def _tried_again(call: Callable[[], T], waits: Sequence[float] = _WAITS_SECONDS) -> T:
    """Once more after each wait, where the Hub is busy or the connection broke."""
    for wait in waits:
        try:
            return call()
        except Exception as error:
            pause = _pause(error, wait)
            if pause is None:
                raise
            time.sleep(pause)
    return call()


def _pause(error: Exception, wait: float) -> float | None:
    """Seconds to wait before a call is made again; None where that would not help."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status, after = error.response.status_code, error.response.headers.get("Retry-After", "")
        if status == _TOO_MANY and after.isdigit():
            return min(float(after), _LONGEST_WAIT_SECONDS)
        return wait if status == _TOO_MANY or status >= 500 else None
    if isinstance(error, OfflineModeIsEnabled):
        return None
    return wait if isinstance(error, httpx.TransportError | ConnectionError) else None
