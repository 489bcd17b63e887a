"""Every source that a command takes works in a recipe, in every place of a recipe that takes one."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY, png, write_class_folders, write_pool, write_tiny_recipe
from hub import commit, serving
from hub_commands import nst
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.recipes.recipe import Recipe
from nst_train.recipes.sections import SourceSettings

CLASSES = ["ant", "bee", "cat"]
ROLES = ("labeled", "validation", "test", "pool", "evaluate")


def recipe_with(folder, role, source):
    """The recipe in `folder` with a source in one place, as it was read: (that source's settings, the recipe)."""
    content = {"name": "a", "labeled": {"source": "here"}, "pool": {"source": "here"}, "generations": [{"model": "x"}] * 2}
    (folder / "here").mkdir(parents=True, exist_ok=True)
    content |= {"evaluate": {"name": "more", "data": {"source": source}}} if role == "evaluate" else {role: {"source": source}}
    (folder / "a.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(folder / "a.yaml")
    return recipe.evaluate[0].data if role == "evaluate" else getattr(recipe, role)


def rows(labeled, first):
    columns = {"image": [{"bytes": png(label, first), "path": None} for label in range(3)], "label": CLASSES}
    return pa.table(columns if labeled else {"image": columns["image"]})


def tar_of(path, labeled):
    with tarfile.open(path, "w") as tar:
        for label, name in enumerate(CLASSES):
            for suffix, content in (("png", png(label, 0)), *([("cls", name.encode())] if labeled else [])):
                entry = tarfile.TarInfo(f"{name}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_everything(folder):
    """Each kind of source that lies on disk, with labels where it can have some: {what a recipe calls it: how many images}."""
    from datasets import Dataset

    write_class_folders(folder / "photos", CLASSES, 2)
    write_class_folders(folder / "my photos (2026)", CLASSES, 1)
    write_class_folders(folder / "owner" / "name", CLASSES, 3)
    pq.write_table(rows(True, 0), folder / "one.parquet")
    for number in (0, 1):
        pq.write_table(rows(True, number), folder / f"part-{number}.parquet")
    tar_of(folder / "one.tar", labeled=True)
    Dataset(rows(True, 0)).save_to_disk(folder / "saved")
    sources = {"photos": 6, "./photos/": 6, "my photos (2026)": 3, "owner/name": 9, "one.parquet": 3, "part-*.parquet": 6, "one.tar": 3}
    return sources | {"part-{0..1}.parquet": 6, "saved": 3, str(folder / "photos"): 6, "../home/photos": 6, "~/photos": 6}


@pytest.mark.parametrize("role", ROLES)
def test_every_source_on_disk_is_found_from_the_recipe_wherever_the_command_runs(tmp_path, monkeypatch, role):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source, images in write_everything(folder).items():
        found = recipe_with(folder, role, source).source
        assert Path(found).is_absolute(), source
        assert len(open_source(found, labeled=role != "pool")) == images, source


def test_a_list_of_images_is_a_pool_and_a_recipes_folder_with_brackets_is_no_pattern(tmp_path):
    folder = tmp_path / "runs [1]"
    write_pool(folder / "pool", 1, 2)
    (folder / "list.txt").write_text("pool/0-100.png\npool/0-101.png\n")
    for number in (0, 1):
        pq.write_table(rows(False, number), folder / f"part-{number}.parquet")
    for source, images in {"list.txt": 2, "part-?.parquet": 6, "pool": 2}.items():
        assert len(open_source(recipe_with(folder, "pool", source).source)) == images, source


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("source", ["owner/name", "owner/name@v1", "owner/name@refs/pr/1:extra/test", "owner/name:default/train", "o/n/s"])
def test_what_lies_nowhere_beside_the_recipe_and_can_be_of_the_hub_is_of_the_hub(tmp_path, role, source):
    assert recipe_with(tmp_path, role, source).source == source


@pytest.mark.parametrize(
    "source", ["photos", "./owner/name", "owner/name/", "a/b/c/d", r"C:\photos", r"photos\pool", "/owner/name", "my photos/2026"]
)
def test_what_can_be_no_reference_of_the_hub_stays_a_path_of_the_recipes_folder(tmp_path, source):
    found = recipe_with(tmp_path, "pool", source).source
    assert found == str(Path(tmp_path, source))
    with pytest.raises(NstError, match=r": no such file.*owner/name on the Hub"):
        open_source(found)


def test_a_published_suites_folder_and_a_file_of_class_names_are_paths_and_never_of_the_hub(tmp_path):
    (tmp_path / "labeled").mkdir()
    (tmp_path / "pool").mkdir()
    path = write_tiny_recipe(
        tmp_path,
        labeled={"source": "labeled", "class_names": "names/en.txt"},
        generations=[{"model": "x"}] * 2,
        evaluate={"suite": "imagenet-a", "data": "owner/name"},
    )
    recipe = load_recipe(path)
    assert recipe.evaluate[0].data.source == str(tmp_path / "owner" / "name")
    assert recipe.labeled.class_names == str(tmp_path / "names" / "en.txt")


def test_a_reference_of_the_hub_that_a_command_would_take_for_a_folder_of_the_current_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cwd" / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    with pytest.raises(
        UsageError,
        match=r"a\.yaml: owner/name:.*not next to the recipe.*owner/name@main.*Hub dataset$",
    ):
        recipe_with(tmp_path, "pool", "owner/name")
    assert recipe_with(tmp_path, "pool", "owner/name@main").source == "owner/name@main"


def test_what_is_neither_here_nor_on_the_hub_is_one_line_that_names_both_readings(tmp_path):
    write_class_folders(tmp_path / "labeled", CLASSES, 1)
    path = write_tiny_recipe(tmp_path, pool="photos/unlabeled", generations=[TINY, TINY])
    with pytest.raises(NstError, match=r"pool: no photos/unlabeled.*on the Hub: photos/unlabeled:.*HF_HUB_OFFLINE.*unset it"):
        self_training(Store(tmp_path / "store"), load_recipe(path), progress=Progress())


def test_each_place_of_a_recipe_that_takes_a_source_is_one_of_these():
    """A place that is added needs to be found by `resolve_sources` too."""
    found = {name for name, field in Recipe.model_fields.items() if "SourceSettings" in str(field.annotation)}
    assert found | {"evaluate"} == set(ROLES)
    assert set(SourceSettings.model_fields) >= {"source", "image_column", "class_names", "stream"}


STREAM = {"source": "me/pool", "stream": True}
EMBED = {"min_confidence": 0.0, "per_class": 8, "embed_images": True}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"labeled": STREAM}, r"a\.yaml: `stream`.*`pool`, `test`.*`evaluate`.*`labeled`.*remove it"),
        ({"validation": STREAM}, "`validation` images are read repeatedly"),
        ({"pool": STREAM}, "needs `select: {embed_images: true}`"),
        ({"pool": STREAM, "select": EMBED | {"when": "once"}}, "and `when: every_generation`"),
        ({"evaluate": {"suite": "imagenet-a", "data": STREAM}}, "`stream` does not apply to imagenet-a"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path, parts, message):
    path = tmp_path / "a.yaml"
    base = {"name": "a", "labeled": {"source": "l"}, "pool": {"source": "p"}, "generations": [TINY, TINY]}
    path.write_text(yaml.safe_dump(base | parts))
    with pytest.raises(UsageError, match=message.replace("{", r"\{")):
        load_recipe(path)


@pytest.mark.slow
def test_a_recipe_over_datasets_of_the_hub_streamed_or_not_gives_the_bytes_of_one_over_the_same_files(tmp_path):
    top, home = tmp_path / "hub", tmp_path / "home"
    (home / "recipes").mkdir(parents=True)
    for name, labeled, first in (("labeled", True, 0), ("test", True, 50), ("pool", False, 100), ("more", True, 70)):
        columns = [rows(labeled, first + number) for number in range(2)]
        pq.write_table(pa.concat_tables(columns), file := home / f"{name}.parquet")
        commit(top, f"me/{name}", {"data/train-00000-of-00001.parquet": file.read_bytes()})
    parts = {"label": {"batch_size": 3}, "select": EMBED, "generations": [TINY, TINY], "run": {"workers": 0, "decode_threads": 1}}
    more = {"name": "more", "data": {"source": "me/more/train"}}
    hub = {
        "name": "a",
        "labeled": {"source": "me/labeled"},
        "test": {"source": "me/test@main:default/train"},
        "pool": {"source": "me/pool"},
    }
    streamed = hub | {"name": "b", "pool": STREAM, "test": {"source": "me/test", "stream": True}}
    for content in (hub, streamed):
        (home / "recipes" / f"{content['name']}.yaml").write_text(yaml.safe_dump(content | parts | {"evaluate": more}))
    with serving(top) as (url, _):
        done = nst(url, home, *(["run", f"recipes/{name}.yaml", "--json"] for name in ("a", "b")))
        assert [one.status for one in done] == [0, 0], [one.err for one in done]
    assert mentions(done[0].err, "pool: no me/pool …; … Hub dataset me/pool@")
    store = Store(home / "store")
    for number in ("gen-1", "gen-1.1"):
        downloaded, read = (store.open(f"{name}@{number}").manifest for name in ("a", "b"))
        assert downloaded.files == read.files
        assert downloaded.request.inputs.pool.ref.startswith("me/pool@")
    assert store.open("a-teacher@gen-1").manifest.digest == store.open("b-teacher@gen-1").manifest.digest
    excluded = {entry.ref.partition("@")[0] for entry in store.open("a@gen-1.1").manifest.request.inputs.excluded.values()}
    assert excluded == {"me/labeled", "me/test", "me/more"}
    assert {"test", "more"} <= json.loads((store.open("a-teacher@gen-1").folder / "metrics.json").read_text()).keys()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("source", ["s3://bucket/images", "gs://bucket/*.tar", "hf://datasets/owner/name@v1/data", "file:///data/photos"])
def test_an_address_stays_as_it_is(tmp_path, role, source):
    assert recipe_with(tmp_path, role, source).source == source


def test_a_network_in_a_folder_lies_beside_the_recipe_or_else_where_a_command_takes_it_from(tmp_path):
    (tmp_path / "net").mkdir()
    network = {"model": "local-dir:net", "pretrained": True}
    content = {"name": "a", "labeled": {"source": "here"}, "pool": {"source": "here"}}
    elsewhere, started = {"model": "local-dir:elsewhere", "finetune": {"epochs": 1}}, {"model": "x", "start": "local-dir:net"}
    content |= {"generations": [network, elsewhere, started], "students": [network | {"name": "b", "finetune": {"epochs": 1}}]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(tmp_path / "a.yaml")
    beside = f"local-dir:{tmp_path / 'net'}"
    assert [one.model for one in recipe.generations] == [beside, "local-dir:elsewhere", "x"]
    assert recipe.generations[2].start == beside
    assert (recipe.students[0].model, recipe.students[0].finetune.model) == (beside, beside)
    assert recipe.generations[1].finetune.model == "local-dir:elsewhere"
