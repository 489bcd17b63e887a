"""What `open_source` finds on the test Hub, seen from a process of its own (see hub.py)."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from hub import TOKEN, environment

OPEN_EACH = """
import json, sys
import numpy as np
from nst_data.errors import NstError
from nst_data.sources import open_source

def text(read):
    try:
        return bytes(read()).hex()
    except (OSError, NstError) as error:
        return str(error)

def look(location, wanted=None, **options):
    try:
        source = open_source(location, **options)
        rows = list(source.rows(range(len(source)) if wanted is None else np.array(wanted)))
    except NstError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"kind": type(source).__name__, "location": source.location, "revision": source.revision,
            "found": [text(row.read) for row in rows], "single": [text(lambda: source.read(row.id)) for row in rows],
            "keys": [source.key(row) for row in range(len(source))], "class_names": source.class_names,
            "labels": None if source.labels is None else source.labels.tolist(),
            "fingerprint": source.fingerprint, "listing": source.listing().to_pylist()}

print(json.dumps([look(location, **options) for location, options in json.loads(sys.argv[1])]))
"""


def parquet(data, **options):
    file = pa.BufferOutputStream()
    pq.write_table(data if isinstance(data, pa.Table) else data.data.table, file, **options)
    return file.getvalue().to_pybytes()


def open_each(url, home, *cases, token=None, **extra):
    """What a process that takes the server for the Hub finds in each (location, options)."""
    command = [sys.executable, "-c", OPEN_EACH, json.dumps(cases)]
    done = subprocess.run(command, env=environment(url, home, token) | extra, capture_output=True, text=True, cwd=home, check=True)
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
