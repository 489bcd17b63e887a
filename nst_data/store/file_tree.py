"""Files at an address: below `s3://bucket/prefix`, on Google Cloud, Azure or the Hub, or below a folder of this machine.

Everything goes through fsspec, whose file systems find credentials and endpoints in the usual places (`AWS_PROFILE`, `AWS_ENDPOINT_URL`,
`GOOGLE_APPLICATION_CREDENTIALS`, `HF_TOKEN`, ...). On an object store nothing is renamed: an object appears whole, and `create` is a
conditional put, which only one of two writers wins. The text of server errors is never shown: it may hold signatures and addresses.
"""

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

from nst_data.errors import NstError, UsageError
from nst_data.hub.errors import causes_of, translate_hub_errors
from nst_data.store.files import fsync, temporary_path
from nst_data.store.storage_errors import code_of, explain_error, is_missing_file

T = TypeVar("T")

NO_SUCH_FILE = "no such file"
_log = logging.getLogger("nst_data")  # without handlers Python prints warnings on standard error
for _library in ("azure", "gcsfs", "google"):
    logging.getLogger(_library).addHandler(logging.NullHandler())  # otherwise Python prints their warnings on standard error
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "hf": "", "file": ""}
_BUCKET_SCHEMES = ("s3", "gs", "gcs", "az")  # schemes whose bucket names contain no colon
_SCHEMES_TEXT = "s3://, gs://, az://, hf://datasets/ and hf://buckets/"
WAITS_SECONDS: Sequence[float] = (1, 2, 4, 8, 16)
_TIMEOUT_SECONDS = 30
# without these, s3fs requests the size first and the Hub's file system reads ahead
_SINGLE_READ_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}, "hf": {"cache_type": "none"}}
_UNREPORTED_BUCKETS = {"gcs": "bucket", "azure": "container"}  # clients that list a missing bucket as empty, with their word for it
_PAGE_FILES = 1_000  # the maximum of S3
_PART_BYTES = 32 * 2**20


class MissingFileError(NstError):
    """There is no such file at the address."""


class ServerUnavailableError(NstError):
    """The server was busy or unreachable in every attempt."""


class StoredFile(NamedTuple):
    """A file at an address. `etag` changes with its content and has no other meaning; empty if the server gives none."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True)
class FileTree:
    """The files below an address, by their names relative to it.

    Raises a one-line NstError if the server refuses a request, lacks a file or does not answer. Reads and writes are retried with
    increasing waits, which are logged as warnings.
    """

    address: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse an address with a scheme; anything else, such as a path, gives None.

        Raises UsageError for an unsupported scheme, and for an address with user info or a signature: credentials do not belong there.
        """
        match = _SCHEME.fullmatch(text)
        if match is None:
            return None
        scheme, rest = match[1].lower(), match[2]
        redacted = without_secrets(text)
        if scheme not in _EXTRAS:
            raise UsageError(f"{redacted}: expected a path or an address that begins with {_SCHEMES_TEXT}")
        if redacted != text:
            raise UsageError(
                f"{redacted}: expected an address without credentials or query; nst takes them from the environment, "
                "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
            )
        if not rest.strip("/"):
            raise UsageError(f"{redacted}: expected a bucket, as in {scheme}://bucket/folder")
        return cls(f"{scheme}://{rest.rstrip('/')}")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.address.startswith("file://")

    @property
    def bucket(self) -> "FileTree":
        """The bucket or container that contains it; on the Hub, the repository."""
        scheme, _, rest = self.address.partition("://")
        parts = rest.split("/")
        return FileTree(f"{scheme}://{'/'.join(parts[: 3 if scheme == 'hf' else 1])}")

    def address_of(self, name: str) -> str:
        """The address of a file."""
        return f"{self.address}/{name}" if name else self.address

    def files(self, prefix: str = "") -> list[StoredFile]:
        """All files below the folder `prefix`, in bytewise order of their names; empty if there are none. Takes one listing."""
        top = self._path(prefix)

        def list_files() -> dict[str, dict[str, Any]]:
            try:
                listing = self._system.find(top, detail=True, **self._refresh_options)
            except FileNotFoundError as error:
                if not is_missing_file(error):
                    raise
                listing = {}
            if not listing and _EXTRAS[self._scheme] in _UNREPORTED_BUCKETS and not self._bucket_exists():
                raise NstError(f"{self.address}: no such {_UNREPORTED_BUCKETS[_EXTRAS[self._scheme]]}")
            return listing if isinstance(listing, dict) else {}  # Azure's client returns a list if the path is a file

        start = len(self._path("").rstrip("/")) + 1
        listing = self._with_retries(list_files, prefix)
        files = [
            StoredFile(path[start:], int(entry.get("size") or 0), _etag(entry))
            for path, entry in listing.items()
            if entry["type"] == "file"
        ]
        return sorted((entry for entry in files if entry.name and not entry.name.endswith("/")), key=lambda entry: entry.name.encode())

    def pages(self) -> Iterator[list[StoredFile]]:
        """All files in the server's order; on S3 page by page, so that memory does not grow with their number."""
        if not self.address.startswith("s3://"):
            yield self.files()
            return
        bucket, _, top = self._path("").partition("/")
        request = {"Bucket": bucket, "Prefix": f"{top}/" if top else ""}
        while True:
            page = self._with_retries(partial(self._system.call_s3, "list_objects_v2", MaxKeys=_PAGE_FILES, **request), "")
            files = [
                StoredFile(entry["Key"][len(request["Prefix"]) :], int(entry["Size"]), _etag(entry)) for entry in page.get("Contents") or ()
            ]
            yield [file for file in files if file.name and not file.name.endswith("/")]
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def children(self, prefix: str = "") -> tuple[list[str], list[StoredFile]]:
        """Names of the folders directly below `prefix`, and the files directly in it, in bytewise order."""
        top = self._path(prefix)

        def list_children() -> list[dict[str, Any]]:
            try:
                return cast("list[dict[str, Any]]", self._system.ls(top, detail=True))
            except FileNotFoundError as error:
                if is_missing_file(error):
                    return []
                raise

        start = len(top.rstrip("/")) + 1
        entries = [(entry["name"].rstrip("/")[start:], entry) for entry in self._with_retries(list_children, prefix)]
        folders = sorted({name for name, entry in entries if name and entry["type"] == "directory"}, key=str.encode)
        files = [(f"{prefix}/{name}" if prefix else name, entry) for name, entry in entries if name and entry["type"] == "file"]
        stored = [StoredFile(name, int(entry.get("size") or 0), _etag(entry)) for name, entry in files]
        return folders, sorted(stored, key=lambda entry: entry.name.encode())

    def stat(self, name: str) -> StoredFile | None:
        """Size and etag of a file, or None if it does not exist."""

        def get_info() -> dict[str, Any] | None:
            try:
                return cast("dict[str, Any]", self._system.info(self._path(name), **self._refresh_options))
            except FileNotFoundError:
                return None

        info = self._with_retries(get_info, name)
        return StoredFile(name, int(info["size"]), _etag(info)) if info is not None and info["type"] == "file" else None

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or those in [start, stop), fewer if the file ends before `stop`.

        Raises MissingFileError if there is no such file.
        """
        at_once = _SINGLE_READ_OPTIONS.get(self._scheme, {})

        def get() -> bytes:
            try:
                return cast("bytes", self._system.cat_file(self._path(name), start=start, end=stop, **at_once))
            except Exception as error:
                if start is not None and {"416", "InvalidRange"} & set(map(code_of, causes_of(error))):  # starts after its end
                    return b""
                raise

        return self._with_retries(get, name)

    def read_if_exists(self, name: str) -> bytes | None:
        """The bytes of a file, or None if it does not exist."""
        try:
            return self.read(name)
        except MissingFileError:
            return None

    def download(self, name: str, path: Path) -> None:
        """Download a file to a local path, whole or not at all, creating its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temp_path = temporary_path(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))  # containers may share host name and process id
        try:
            self._with_retries(lambda: self._system.get_file(self._path(name), str(temp_path)), name)
            with temp_path.open("rb") as file:
                fsync(file.fileno())
            temp_path.replace(path)
        finally:
            temp_path.unlink(missing_ok=True)

    def upload(self, path: Path, name: str) -> None:
        """Upload a local file, replacing any existing one; it appears whole, although large files are sent in parts."""
        self._with_retries(lambda: self._system.put_file(str(path), self._path(name), chunksize=_PART_BYTES), name)

    def upload_new(self, path: Path, name: str) -> bool:
        """Upload a local file unless one of that name exists; return whether it was uploaded.

        Also returns False if the put succeeded but its response was lost, so that it was retried.
        """

        def put() -> bool:
            if self.is_local and os.path.exists(self._path(name)):  # fsspec has no conditional put for local files
                return False
            options: dict[str, Any] = {} if self.is_local else {"mode": "create"}
            try:
                self._system.put_file(str(path), self._path(name), chunksize=_PART_BYTES, **options)
            except OSError as error:
                if _is_already_exists_error(error):
                    return False
                raise
            return True

        return self._with_retries(put, name)

    def sha256(self, file: StoredFile) -> str:
        """The sha256 of a file, which is read in pieces. Raises MissingFileError if it is gone."""
        sha256 = hashlib.sha256()
        for start in range(0, file.size, _PART_BYTES):
            sha256.update(self.read(file.name, start, start + _PART_BYTES))
        return sha256.hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, replacing any existing one."""
        self._with_retries(lambda: self._system.pipe_file(self._path(name), content), name)

    def create(self, name: str, content: bytes, is_unique: bool = False) -> bool:
        """Write a small file unless one of that name exists; return whether it was written.

        If the response to a put was lost and the put is retried, an existing file with exactly these bytes counts as written by this
        call. Clients also retry silently, so with `is_unique`, if nobody else writes these bytes, such a file always counts.
        """

        def put() -> bool:
            try:
                self._system.pipe_file(self._path(name), content, mode="create")
            except OSError as error:
                if _is_already_exists_error(error):
                    return False
                raise
            return True

        tries: list[None] = []

        def count_and_put() -> bool:
            tries.append(None)
            return put()

        is_new = self._with_retries(count_and_put, name)
        return is_new or ((is_unique or len(tries) > 1) and self.read_if_exists(name) == content)

    def check_conditional_put(self) -> None:
        """Raise NstError if the server ignores the condition of a put, as nothing would keep two writers apart there."""
        if not self.is_local:
            _check_conditional_put(self, os.getpid(), _server_environment())

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; missing ones are ignored. Raises NstError if one may not be deleted."""
        paths = [self._path(name) for name in names]
        if self.address.startswith("s3://"):
            for start in range(0, len(paths), _PAGE_FILES):
                self._with_retries(partial(self._delete_from_s3, paths[start : start + _PAGE_FILES]), "")
        elif paths:
            self._with_retries(partial(self._delete, paths), "")

    def _delete(self, paths: list[str]) -> None:
        if not any(map(has_magic, paths)):  # fsspec would treat these as patterns
            with suppress(FileNotFoundError):
                self._system.rm(paths)
                return
        for path in paths:
            with suppress(FileNotFoundError):
                self._system.rm_file(path)

    def _delete_from_s3(self, paths: list[str]) -> None:
        """Delete in one request and check the response: s3fs ignores files in it that the server refused to delete."""
        bucket, keys = paths[0].partition("/")[0], [path.partition("/")[2] for path in paths]
        response = self._system.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True})
        for error in response.get("Errors") or ():
            if error.get("Code") not in ("NoSuchKey", "404"):
                raise _RefusedError(str(error.get("Code", "")))

    @property
    def _scheme(self) -> str:
        return self.address.partition("://")[0]

    @property
    def _system(self) -> Any:  # noqa: ANN401 - fsspec ships no types
        return _file_system(self._scheme, self._account, os.getpid(), _server_environment())

    @property
    def _refresh_options(self) -> dict[str, bool]:
        """Options of a listing without which a bucket on the Hub stays as the process first saw it."""
        return {"refresh": True} if self.address.startswith("hf://buckets/") else {}

    @property
    def _account(self) -> str:
        """The Azure account in abfss://container@account.dfs.core.windows.net/folder; otherwise empty."""
        container = self.address.partition("://")[2].partition("/")[0] if _EXTRAS[self._scheme] == "azure" else ""
        return container.partition("@")[2].partition(".")[0]

    def _path(self, name: str) -> str:
        path = self.address.partition("://")[2]
        if self._account:
            host, slash, folder = path.partition("/")
            path = f"{host.partition('@')[0]}{slash}{folder}"
        return f"{path}/{name}" if name else path

    def _bucket_exists(self) -> bool:
        """Whether the bucket exists; also True if asking is not allowed."""
        try:
            self._system.info(self._path("").partition("/")[0])
        except FileNotFoundError:
            return False
        except Exception:  # listing the files may be allowed even though this is not
            return True
        return True

    def _with_retries(self, call: Callable[[], T], name: str) -> T:
        """The result of `call`, which is retried if the server is busy or the connection broke."""
        for wait in (*WAITS_SECONDS, None):
            try:
                return call()
            except NstError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.filename is not None and not self.is_local and os.path.isabs(str(error.filename)):
                    raise  # an error of this machine: a full disk, no permission
                reason, is_passing = explain_error(error, _EXTRAS[self._scheme])
                if not is_passing or wait is None:
                    if self.address.startswith("hf://") and not is_missing_file(error):
                        try:
                            with translate_hub_errors(
                                self.address_of(name), "bucket" if self.address.startswith("hf://buckets/") else "dataset"
                            ):
                                raise
                        except NstError as plain_error:
                            raise (ServerUnavailableError(str(plain_error)) if is_passing else plain_error) from None
                    error_class = (
                        MissingFileError if isinstance(error, FileNotFoundError) else ServerUnavailableError if is_passing else NstError
                    )
                    raise error_class(f"{self.address_of(name)}: {reason}") from None
                _warn_of_retry(self.address_of(name), reason, wait)
                time.sleep(wait)
        raise AssertionError


_silent_until: dict[str, float] = {}


def _warn_of_retry(address: str, reason: str, wait: float) -> None:
    """Log a warning, once if many reads wait for the same reason."""
    now = time.monotonic()
    if now >= _silent_until.get(reason, 0):
        _silent_until[reason] = now + wait
        _log.warning("%s: %s; retrying in %g s", address, reason, wait)


def without_secrets(address: str) -> str:
    """An address without what grants access: user info with a password, and the query, which may hold a signature."""
    match = _SCHEME.fullmatch(address)
    if match is None:
        return address
    rest = match[2]
    if match[1].lower() in _BUCKET_SCHEMES and ":" in rest.partition("/")[0]:  # a secret may contain slashes
        rest = rest.rpartition("@")[2] if "@" in rest else rest.partition("/")[2]
    authority, slash, path = rest.partition("/")
    user, separator, host = authority.rpartition("@")
    if separator and not (match[1].lower() in ("abfs", "abfss") and ":" not in user):  # container@account
        authority = host
    path, question, query = path.partition("?")
    if question and "=" not in query:  # a name with a question mark
        path += question + query
    return f"{match[1]}://{authority}{slash}{path}"


def _etag(entry: dict[str, Any]) -> str:
    value = entry.get("ETag") or entry.get("etag") or entry.get("blob_id") or entry.get("xet_hash") or entry.get("mtime") or ""
    return str(value).strip('"')


def _server_environment() -> tuple[tuple[str, str], ...]:
    """The environment variables that set servers and credentials."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(_ENVIRONMENT_PREFIXES)))


_ENVIRONMENT_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST")


@lru_cache(maxsize=8)
def _file_system(scheme: str, account: str, process: int, settings: tuple[tuple[str, str], ...]) -> Any:  # noqa: ANN401 - as above
    """The file system for a scheme: one per process, as threads and connections do not survive a fork, and per server and user.

    Retries of the clients are kept to a minimum, since nst itself retries and logs each wait.
    """
    import fsspec

    uncached: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        match _EXTRAS[scheme]:
            case "s3":
                config = {"connect_timeout": 10, "read_timeout": _TIMEOUT_SECONDS, "retries": {"total_max_attempts": 2}}
                system = fsspec.filesystem(scheme, **uncached, config_kwargs=config, max_concurrency=8)
                system.retries = 1
            case "gcs":
                system = _google_file_system(uncached)
            case "azure":
                system = _azure_file_system(scheme, account, uncached)
            case _:  # the Hub's is the same instance each time, with what it has cached of a repository
                system = fsspec.filesystem(scheme, **({"auto_mkdir": True} if scheme == "file" else {}))
        return system
    except ImportError:
        raise UsageError(f"{scheme}://: requires the extra `{_EXTRAS[scheme]}`: `pip install 'nst[{_EXTRAS[scheme]}]'`") from None


def _azure_file_system(scheme: str, account: str, options: dict[str, Any]) -> Any:  # noqa: ANN401 - as above
    import fsspec

    system = fsspec.filesystem(scheme, **options, account_name=account or None)
    with suppress(AttributeError):  # adlfs does not expose its client's settings; if the client is built differently, it retries itself
        client = system.service_client
        client._config.retry_policy.total_retries = 0
        connection = client._pipeline._transport.connection_config
        connection.timeout, connection.read_timeout = 10, _TIMEOUT_SECONDS
    return system


def _google_file_system(options: dict[str, Any]) -> Any:  # noqa: ANN401 - as above
    """gcsfs over HTTP only: its other class looks up the type of a bucket over gRPC, whose threads do not survive a fork."""
    from aiohttp import ClientTimeout
    from gcsfs.core import GCSFileSystem

    system = GCSFileSystem(**options, requests_timeout=ClientTimeout(total=None, connect=10, sock_read=_TIMEOUT_SECONDS))
    for name in ("_request", "_get_file_request"):  # without the retrying wrapper
        method = getattr(GCSFileSystem, name)
        setattr(system, name, partial(getattr(method, "__wrapped__", method), system))
    return system


class _RefusedError(Exception):
    """A server's refusal for one of many files; `code_of` reads `code` as it does for other errors."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@lru_cache(maxsize=64)
def _check_conditional_put(tree: FileTree, process: int, settings: tuple[tuple[str, str], ...]) -> None:
    name = "runs/.condition"  # shared by all: a leftover of a killed process works too, as it must not be overwritten
    is_own = tree.create(name, secrets.token_bytes(8), is_unique=True)
    try:
        if is_own and tree.create(name, b"again"):
            raise NstError(
                f"{tree.address}: the server ignores If-None-Match, so two writers could overwrite each other; "
                "expected a storage with conditional puts, such as Amazon S3, MinIO or SeaweedFS"
            )
    finally:
        if is_own:  # another process may be running the same check
            with suppress(NstError):
                tree.remove([name])


def _is_already_exists_error(error: OSError) -> bool:
    """Whether a conditional put failed because the file exists: status 412, not one of the many other errors with errno EINVAL."""
    return isinstance(error, FileExistsError) or not {"412", "PreconditionFailed"}.isdisjoint(map(code_of, causes_of(error)))
