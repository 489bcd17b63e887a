"""A client of the Hub in a process of its own, and two versions of a repository's files for it to push."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from hub import environment
from hub_looks import parquet

PRELUDE = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
api, top = HfApi(), Path(sys.argv[1])

def caught(call, *arguments, **options):
    try:
        return {"done": str(call(*arguments, **options))}
    except Exception as error:
        response = getattr(error, "response", None)
        return {"error": type(error).__name__, "status": response.status_code if response is not None else None, "says": str(error)}
"""


def start(url, home, script, *arguments, token=None):
    command = [sys.executable, "-c", PRELUDE + script, *map(str, arguments)]
    settings = environment(url, home, token) | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments, **options):
    """What a script printed last, as JSON."""
    process = start(*arguments, **options)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def write(folder, contents):
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def read(folder):
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if not path.startswith(".cache/")}


CARD = b"---\nlicense: mit\nconfigs:\n- config_name: balanced\n  data_files: balanced/*.parquet\n---\n# Pseudo-labels\n"
FIRST = {
    "README.md": CARD,
    "manifest.json": b'{"version": "1"}\n',
    "balanced/train-00000-of-00001.parquet": parquet(pa.table({"label": [0, 1, 2]})),
    "pictures/counts.png": b"\x89PNG but short",
    "bytes": b"\0\1\2 no text",
    "a text.txt": "drei Größen\n".encode(),
    "a/b": b"1",
    "a.b": b"2",  # git sorts a.b before a/
}
SECOND = FIRST | {
    "manifest.json": b'{"version": "2"}\n',
    "balanced/train-00000-of-00001.parquet": parquet(pa.table({"label": [3, 4]})),
}
LARGE = bytes(range(256)) * 4096
