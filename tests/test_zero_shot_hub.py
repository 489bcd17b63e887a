"""Zero-shot teachers of the Hub, from a server on this machine; in a process of its own, as the Hub's clients read their address once."""

import json
import subprocess
import sys
from pathlib import Path

import hub
import pytest
from conftest import write_pool
from image_text import write_clip
from test_open_clip import write_open_clip
from test_teachers_hub import files_of
from wording import mentions

from nst_data.store.store import Store
from nst_train import ZeroShot
from nst_train.classifiers.teachers import load_classifier

pytestmark = pytest.mark.slow
SCRIPT = """
import json, os, sys
from pathlib import Path
home = Path(os.environ["HF_HOME"])  # what the tests import sets it anew
from labels import RUN, SETTINGS, table_rows
from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train import ZeroShot
from nst_train.classifiers.teachers import load_classifier
from nst_train.labeling.label import extend, label

store, pool, grown = Store(sys.argv[1]), open_source(sys.argv[2]), open_source(sys.argv[3])
first, *names = json.loads(sys.argv[4])
version = label(store, "bugs", ZeroShot(model=first, class_names=["ant", "bee"]), pool, SETTINGS, run=RUN)
more = extend(store, version, grown, run=RUN)
entry = version.manifest.request.inputs.teacher
print(json.dumps({"digest": entry.digest, "revision": entry.revision, "rows": len(table_rows(more))}))
for name in names:
    try:
        _, entry = load_classifier(ZeroShot(model=name, class_names=["ant", "bee"]), store)
        print(json.dumps({"digest": entry.digest, "revision": entry.revision}))
    except NstError as error:
        print(json.dumps({"error": str(error)}))
print(json.dumps(sorted({path.name for path in home.rglob("*") if path.is_file()})))
"""


def test_a_model_of_the_hub_is_that_of_its_folder_and_a_grown_pool_takes_the_same_commit(tmp_path):
    teachers = {"clip": write_clip(tmp_path / "clip"), "open": write_open_clip(tmp_path / "open")}
    both = files_of(tmp_path / "clip") | files_of(tmp_path / "open")
    files = {"clip": files_of(tmp_path / "clip"), "open": files_of(tmp_path / "open"), "both": both, "none": {"README.md": b"nothing"}}
    place = tmp_path / "hub"
    commits = {name: hub.commit(place, f"owner/{name}", content, "models") for name, content in files.items()}
    names = ["owner/clip", "hf-hub:owner/open", "hf-hub:owner/both", "owner/none"]
    pool, grown = write_pool(tmp_path / "pool", 2, 2), write_pool(tmp_path / "grown", 3, 2)
    with hub.serving(place) as (url, _):
        environment = hub.environment(url, tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SCRIPT, *map(str, [tmp_path / "store", pool, grown, json.dumps(names)])]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    *answers, cached = map(json.loads, done.stdout.splitlines())
    words = {"class_names": ["ant", "bee"]}
    digests = {name: load_classifier(ZeroShot(model=model, **words), Store(tmp_path / "s"))[1].digest for name, model in teachers.items()}
    assert [one.get("digest") for one in answers] == [digests["clip"], digests["open"], digests["clip"], None]
    assert [one.get("revision") for one in answers[:3]] == [commits[name] for name in ("clip", "open", "both")]
    assert answers[0]["rows"] == 6
    assert mentions(answers[3]["error"], "owner/none: … config.json and … safetensors …")
    assert {"tokenizer.json", "model.safetensors", "open_clip_model.safetensors"} <= set(cached)
