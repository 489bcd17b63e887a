"""A Hugging Face Hub on this machine: a real server over git repositories, for tests that must talk to one.

    with serving(top) as (url, answers): ...   the Hub's clients speak to `url`, in a process with `environment(url, home, token)`
    commit(top, "me/data", {"x.parquet": b"..."})   writes a repository without the server; `read_files`, `resolve_commit` and `set_ref`
    look into it python tests/hub.py TOP [PORT]             serves alone, until Ctrl-C

Repositories are in hub_git.py, the calls in hub_calls.py (hub_reads.py, hub_writes.py, hub_buckets.py), faults to inject in
hub_faults.py. The clients read their address once, when they are imported: use them in a process of their own.
"""

import os
import secrets
import sys
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_calls import Calls
from hub_git import Repository, belongs_in_lfs

TOKEN = "hf_thisTokenIsForThePrivateReposOfTestsAlone"
ALICE = "hf_aliceWritesHerRepositoriesWithThisToken"
BOB = "hf_bobWritesHisRepositoriesWithThisToken"
READER = "hf_aliceReadsHerRepositoriesWithThisToken"
USERS = {TOKEN: ("me", True), ALICE: ("alice", True), BOB: ("bob", True), READER: ("alice", False)}  # token: (user, may write)


def commit(top, repo, files, kind="datasets", branch="main"):
    """Write {path: bytes} as a commit that the branch then names; its sha. What other files there were are gone."""
    repository = Repository(Path(top, kind, repo))
    if not repository.exists():
        Repository.create(repository.folder)
    blobs = {}
    for path, content in files.items():
        large = belongs_in_lfs(path, len(content), content[:512])
        blobs[path] = repository.put_pointer(repository.put_large(content), len(content)) if large else repository.put("blob", content)
    return repository.commit(branch, blobs, f"{len(files)} files", repo.split("/")[0])


def set_ref(top, repo, ref, sha, kind="datasets"):
    """Let the branch main, a tag or refs/... name a commit."""
    full = ref if ref.startswith("refs/") else f"refs/heads/{ref}" if ref == "main" else f"refs/tags/{ref}"
    Repository(Path(top, kind, repo)).name(full, sha)


def resolve_commit(top, repo, revision="main", kind="datasets"):
    """The commit that a branch, a tag, refs/... or a sha names; None without one."""
    return Repository(Path(top, kind, repo)).resolve(revision)


def read_files(top, repo, revision="main", kind="datasets"):
    """{path: bytes} of what a branch, a tag, refs/... or a sha names; large files too."""
    repository = Repository(Path(top, kind, repo))
    found = [entry for entry in repository.entries(repository.resolve(revision)).values() if not entry.is_folder]
    return {file.path: repository.large(file.lfs).read_bytes() if file.lfs else repository.get(file.oid)[1] for file in found}


def environment(url, home, token=None):
    """Of a process that takes the server for the Hub; nothing of this process's own Hub settings passes."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    alone = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    alone |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return kept | alone | {"HF_ENDPOINT": url, "HF_HOME": str(home)} | ({"HF_TOKEN": token} if token else {})


@contextmanager
def serving(top, faults=(), port=0):
    """The address of a Hub over a folder, and what it has answered, in order (`hub_http.Answer`).

    `faults` are hub_faults.Fault; a list may change while it serves.
    """
    server = _Server(("127.0.0.1", port), Calls)
    server.top, server.faults, server.answers, server.users = Path(top), faults, [], USERS
    server.url, server.secret, server.writing = f"http://127.0.0.1:{server.server_port}", secrets.token_hex(), threading.RLock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.url, server.answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients are killed by tests, and hang up
            super().handle_error(request, client_address)


if __name__ == "__main__":
    with serving(sys.argv[1], port=int(sys.argv[2]) if len(sys.argv) > 2 else 0) as (address, _):
        print(f"{address}  HF_ENDPOINT={address} HF_HUB_DISABLE_XET=1 HF_TOKEN={ALICE} (alice) or {BOB} (bob)", flush=True)
        threading.Event().wait()
