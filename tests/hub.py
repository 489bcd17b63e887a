"""A Hugging Face Hub on this machine: a real server over folders, for tests that must talk to one.

    <top>/datasets/<owner>/<name>/commits/<sha>/...   the files of each commit
                                  refs/<branch, tag or refs/...>   a file with a sha; its name is URL-quoted
    <top>/models/...                                  the same

`commit` writes both. The Hub's clients read their address once, when they are imported: use them in a process of their own,
started with `environment(url, home)`.
"""

import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_thisTokenIsForThePrivateReposOfTestsAlone"


def commit(top, repo, files, kind="datasets", branch="main"):
    """Write {path: bytes} as a commit that the branch then names; its sha."""
    folder = Path(top, kind, repo)
    number = len(list(folder.glob("commits/*")))
    sha = hashlib.sha1(repr((number, sorted(files.items()))).encode()).hexdigest()
    for path, content in files.items():
        file = folder / "commits" / sha / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    name(top, repo, branch, sha, kind)
    return sha


def name(top, repo, ref, sha, kind="datasets"):
    """Let a branch, a tag or refs/... name a commit."""
    file = Path(top, kind, repo, "refs", quote(ref, safe=""))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(sha)


def environment(url, home, token=None):
    """Of a process that takes the server for the Hub; nothing of this process's own Hub settings passes."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    alone = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    return kept | alone | {"HF_ENDPOINT": url, "HF_HOME": str(home)} | ({"HF_TOKEN": token} if token else {})


@contextmanager
def serving(top):
    """The address of a Hub over a folder, and what it has answered, as (method, path, bytes of content)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.top, server.answers = Path(top), []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _RefusedError(Exception):
    """(status, X-Error-Code)."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and content are two packets, and the second would wait for an answer to the first
    _ROUTES = (
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "_info"),
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", "_tree"),
        ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/refs", "_refs"),
        ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", "_paths_info"),
        ("GET|HEAD", r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "_resolve"),
    )

    def _answer(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        try:
            for method, pattern, handler in self._ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    return getattr(self, handler)(*(part and unquote(part) for part in match.groups()))
            raise _RefusedError(404, "")
        except _RefusedError as error:
            status, code = error.args
            self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815

    def log_message(self, *_):
        pass

    def _send(self, status, content, headers=()):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content)), "Content-Type": "application/json"} | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        self.server.answers.append((self.command, self.path, 0 if self.command == "HEAD" else len(content)))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value):
        self._send(200, json.dumps(value).encode())

    def _commit(self, kind, repo, revision):
        """(sha, folder of the files). A repo with a file `private` wants the token, one with `gated` refuses files."""
        folder = self.server.top / (kind or "models") / repo
        if not folder.is_dir() or ((folder / "private").exists() and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise _RefusedError(401, "RepoNotFound")
        ref = folder / "refs" / quote(revision or "main", safe="")
        sha = ref.read_text() if ref.is_file() else revision
        if not (folder / "commits" / sha).is_dir():
            raise _RefusedError(404, "RevisionNotFound")
        return sha, folder / "commits" / sha

    def _info(self, kind, repo, revision):
        sha, folder = self._commit(kind, repo, revision)
        siblings = [{"rfilename": entry["path"]} for entry in _entries(folder) if entry["type"] == "file"]
        self._json({"id": repo, "sha": sha, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, kind, repo, revision, below):
        _, folder = self._commit(kind, repo, revision)
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("1", "true")
        if below and not (folder / below).is_dir():
            raise _RefusedError(404, "EntryNotFound")
        self._json([entry for entry in _entries(folder) if _is_below(entry["path"], below or "", recursive)])

    def _refs(self, kind, repo):
        self._commit(kind, repo, None)
        files = sorted((self.server.top / kind / repo / "refs").iterdir())
        found = [{"name": unquote(file.name), "targetCommit": file.read_text()} for file in files]
        branches = [ref | {"ref": f"refs/heads/{ref['name']}"} for ref in found if ref["name"] == "main"]
        tags = [ref | {"ref": f"refs/tags/{ref['name']}"} for ref in found if ref["name"] != "main"]
        self._json({"branches": branches, "tags": tags, "converts": []})

    def _paths_info(self, kind, repo, revision):
        _, folder = self._commit(kind, repo, revision)
        text = self.body.decode()
        asked = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
        self._json([entry for entry in _entries(folder) if entry["path"] in asked])

    def _resolve(self, kind, repo, revision, path):
        sha, folder = self._commit(kind, repo, revision)
        if (folder.parent.parent / "gated").exists():
            raise _RefusedError(403, "GatedRepo")
        file = folder / path
        if ".." in Path(path).parts or not file.is_file():
            raise _RefusedError(404, "EntryNotFound")
        content = file.read_bytes()
        headers = {
            "X-Repo-Commit": sha,
            "ETag": f'"{_blob(content)}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, content, headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        return self._send(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


def _entries(folder):
    """What the Hub says of every file and folder of a commit."""
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder).as_posix()
        if path.is_dir():
            yield {"type": "directory", "path": where, "oid": hashlib.sha1(where.encode()).hexdigest(), "size": 0}
        else:
            content = path.read_bytes()
            yield {"type": "file", "path": where, "oid": _blob(content), "size": len(content)}


def _is_below(path, top, recursive):
    parent = os.path.dirname(path)
    return parent == top or (recursive and (not top or parent.startswith(top + "/")))


def _blob(content):
    """git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
