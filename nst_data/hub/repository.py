"""A repository of the Hub: its tags and files, and the calls that change it."""

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from nst_data.errors import NstError, UsageError
from nst_data.hub.errors import not_found_message, translate_hub_errors
from nst_data.hub.reference import HubReference
from nst_data.hub.retries import WAITS_SECONDS, call_with_retries

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

RepoKind = Literal["dataset", "model"]
T = TypeVar("T")

MAX_TEXT_BYTES = 64 * 2**20  # of a manifest, a card or the like, which is read into memory
_TIMEOUT_SECONDS = 30
_CONFLICT, _CHANGED = 409, 412
_COMMIT = re.compile(r"[0-9a-f]{40}")


class TooLargeError(NstError):
    """A text file on the Hub is larger than any that nst writes."""


@dataclass(frozen=True)
class Repository:
    """`owner/name` on the Hub."""

    id: str
    kind: RepoKind = "dataset"
    api: "HfApi" = field(default_factory=lambda: _api(), repr=False, compare=False)
    _listings: dict[tuple[str, bool], dict[str, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, kind: RepoKind = "dataset") -> tuple[Self, str | None] | None:
        """The repository and revision in `[hf-hub:]owner/name[@revision]`; None for any other text."""
        reference = HubReference.parse_repository(text)
        return (cls(reference.repo, kind), reference.revision) if reference else None

    @classmethod
    def from_id(cls, repo_id: str, kind: RepoKind = "dataset") -> Self:
        """The repository `owner/name`. Raises UsageError for any other text."""
        parsed = cls.parse(repo_id, kind)
        if parsed is None or parsed[1] is not None:
            raise UsageError(f"{repo_id}: expected a repository of the Hub, OWNER/NAME, as in alice/flowers-pseudo")
        return parsed[0]

    def resolve_kind(self) -> "Repository":
        """This repository, or the model of the same name if there is no such dataset. Raises NstError if there is neither."""
        if self.kind == "model" or self.is_private() is not None:
            return self
        model = replace(self, kind="model")
        if model.is_private() is None:
            raise NstError(f"{self.id}: {not_found_message('dataset or model')}")
        return model

    def tags(self) -> dict[str, str]:
        """The commit of each tag."""
        refs = self.read_with_retries(lambda: self.api.list_repo_refs(self.id, repo_type=self.kind))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def head(self) -> tuple[str, list[str]]:
        """The latest commit of the main branch, and the names of its files."""
        info = self.read_with_retries(lambda: self.api.repo_info(self.id, repo_type=self.kind, timeout=_TIMEOUT_SECONDS))
        return str(info.sha), [file.rfilename for file in getattr(info, "siblings", None) or []]

    def commit_of(self, revision: str) -> str:
        """The commit that a revision (branch, tag or commit) currently refers to."""
        return str(
            self.read_with_retries(
                lambda: self.api.repo_info(self.id, repo_type=self.kind, revision=revision, timeout=_TIMEOUT_SECONDS)
            ).sha
        )

    def is_private(self) -> bool | None:
        """Whether the repository is private; None if it does not exist or the user may not see it."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def get_private() -> bool | None:
            try:
                return bool(self.api.repo_info(self.id, repo_type=self.kind, timeout=_TIMEOUT_SECONDS).private)
            except RepositoryNotFoundError:
                return None

        return self.read_with_retries(get_private)

    def create(self, private: bool) -> None:
        """Create the repository if it does not exist."""
        self.write_with_retries(lambda: self.api.create_repo(self.id, repo_type=self.kind, private=private, exist_ok=True))

    def file_sizes(self, commit: str, recursive: bool = False) -> dict[str, int]:
        """Size in bytes of each top-level file at a commit or, with `recursive`, of all files. The listing is cached."""
        return self.read_with_retries(lambda: self._file_sizes(commit, recursive))

    def read_text(self, file: str, commit: str) -> str | None:
        """The content of a small top-level text file at a commit, or None if it does not exist or is not text.

        Raises TooLargeError, before any download, if the file is too large.
        """
        return self.read_with_retries(lambda: self.read_text_once(file, commit))

    def read_text_once(self, file: str, commit: str) -> str | None:
        """Like `read_text`, without retries: raises the errors of huggingface_hub immediately if the Hub does not answer."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = self._cached_path(file, commit)
            size = self._file_sizes(commit).get(file) if path is None else path.stat().st_size
            if size is None:
                return None
            if size > MAX_TEXT_BYTES:
                raise TooLargeError(
                    f"{self.id}@{commit[:12]}: {file} has {size / 2**20:,.0f} MB, expected at most {MAX_TEXT_BYTES / 2**20:,.0f} MB; "
                    "it was not read"
                )
            path = path or Path(self.api.hf_hub_download(self.id, file, repo_type=self.kind, revision=commit))
            return path.read_bytes().decode()  # keep line endings
        except LocalEntryNotFoundError:
            raise
        except (EntryNotFoundError, UnicodeDecodeError):
            return None

    def _cached_path(self, file: str, commit: str) -> Path | None:
        """The cached copy of a file, if any; None for a branch or tag, which may have moved."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.id, file, revision=commit, repo_type=self.kind) if _COMMIT.fullmatch(commit) else None
        return Path(cached) if isinstance(cached, str) else None

    def _file_sizes(self, commit: str, recursive: bool = False) -> dict[str, int]:
        from huggingface_hub import RepoFile

        if (commit, recursive) not in self._listings:
            entries = self.api.list_repo_tree(self.id, recursive=recursive, revision=commit, repo_type=self.kind)
            self._listings[commit, recursive] = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        return self._listings[commit, recursive]

    def commit(self, operations: list["CommitOperationAdd | CommitOperationDelete"], message: str, parent: str) -> str | None:
        """Change files in one commit on top of `parent`. Returns the new commit, or None if the main branch is no longer at `parent`."""
        from huggingface_hub.errors import HfHubHTTPError

        def change() -> str | None:
            try:
                commit_info = self.api.create_commit(self.id, operations, commit_message=message, repo_type=self.kind, parent_commit=parent)
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code == _CHANGED:
                    return None
                raise
            return str(commit_info.oid)

        return self.write_with_retries(change, WAITS_SECONDS[:1])  # huggingface_hub retries on its own, except its first request

    def upload(self, files: list["CommitOperationAdd"]) -> None:
        """Upload large files ahead of the commit that adds them; files that are already there are skipped."""
        with translate_hub_errors(self.id, self.kind, writing=True):
            self.api.preupload_lfs_files(self.id, additions=files, repo_type=self.kind)

    def tag(self, name: str, commit: str) -> bool:
        """Tag a commit. Returns False if the tag already exists, in which case it is left unchanged."""
        from huggingface_hub.errors import HfHubHTTPError

        def create_tag() -> bool:
            try:
                self.api.create_tag(self.id, tag=name, revision=commit, repo_type=self.kind)
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code == _CONFLICT:
                    return False
                raise
            return True

        return self.write_with_retries(create_tag)

    def download(self, file: str, commit: str, folder: Path) -> None:
        """Download a file at a commit below a folder. Raises NstError with a one-line message."""

        def download_to(target: Path | str) -> None:
            self.api.hf_hub_download(self.id, file, repo_type=self.kind, revision=commit, local_dir=target)

        def call() -> None:
            if _can_lock_files(folder):  # huggingface_hub locks the files that it writes
                return download_to(folder)
            with tempfile.TemporaryDirectory(prefix="nst-") as temp_folder:
                download_to(temp_folder)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(temp_folder, file), folder / file)

        self.read_with_retries(call)

    def read_with_retries(self, call: Callable[[], T]) -> T:
        """The result of a read-only call to the Hub, with retries. Raises NstError with a one-line message."""
        with translate_hub_errors(self.id, self.kind):
            return call_with_retries(call)

    def write_with_retries(self, call: Callable[[], T], waits: Sequence[float] = WAITS_SECONDS) -> T:
        """The result of a call that changes the repository, with retries. Raises NstError with a one-line message."""
        with translate_hub_errors(self.id, self.kind, writing=True):
            return call_with_retries(call, waits)


def _can_lock_files(folder: Path) -> bool:
    """Whether files in a folder can be locked."""
    try:
        import fcntl
    except ImportError:  # Windows, where files can be locked
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="nst")
