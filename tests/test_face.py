"""What `import nst_data` and `import nst_train` offer, and what a user of Python is told."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_class_folders

import nst_data
import nst_train
from nst_data import BalanceSettings, NstError, Store, adopt, balance, diff, lineage, open_source, quality
from nst_data.progress import Progress
from nst_train import EvaluateSettings, LabelSettings, Noise, RunSettings, TrainSettings, evaluate, extend, label, label_like, train
from nst_train.settings import LabelRunSettings

ROOT = Path(__file__).parent.parent
DATA = """
BalanceSettings NstError PickSettings Source Store UsageError Version __version__
adopt balance copy diff export freeze hold_out lineage open_source pull push quality
"""
TRAIN = """
EmbedRunSettings EmbedSettings EvaluateSettings LabelRunSettings LabelSettings Noise Recipe RunSettings TrainSettings ZeroShot __version__
embed evaluate export_network extend label label_like load_recipe pick self_training train
"""
CHECK = """
import types, nst_data, nst_train
for package in (nst_data, nst_train):
    for name in package.__all__:
        value = getattr(package, name)
        assert not isinstance(value, types.ModuleType), name
        assert name == "__version__" or (value.__name__ == name and value.__module__.startswith(package.__name__)), name
"""


def test_the_names_are_these():
    assert (dir(nst_data), dir(nst_train)) == (DATA.split(), TRAIN.split())
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", nst_data.__version__)
    assert nst_train.__version__ == nst_data.__version__
    with pytest.raises(AttributeError, match="module 'nst_train' has no attribute 'trian'"):
        nst_train.__getattr__("trian")


@pytest.mark.parametrize("package", [nst_data, nst_train])
def test_checkers_see_what_is_imported(package):
    imports = [node for node in ast.walk(ast.parse(Path(package.__file__).read_text())) if isinstance(node, ast.ImportFrom)]
    seen = {one.name: node.module for node in imports for one in node.names if node.module.startswith(package.__name__)}
    assert seen == {name: f"{package.__name__}.{module}" for name, module in package._MODULES.items()}
    assert seen.keys() | {"__version__"} >= set(package.__all__) >= seen.keys()


def submodules():
    names = [file.relative_to(ROOT).with_suffix("") for package in ("nst_data", "nst_train") for file in (ROOT / package).rglob("*.py")]
    return sorted({".".join(name.parts).removesuffix(".__init__") for name in names})


@pytest.mark.parametrize("package", [nst_data, nst_train])
def test_no_module_at_the_top_has_the_name_of_a_function(package):
    tops = {path.stem for path in Path(package.__file__).parent.iterdir()}
    assert {"settings", "store"} & tops
    assert tops & set(dir(package)) == set()


@pytest.mark.slow
@pytest.mark.parametrize("turn", [1, -1])
def test_the_names_stay_what_they_are_whatever_is_imported(turn):
    imports = "\n".join(f"import {name}" for name in submodules()[::turn])
    subprocess.run([sys.executable, "-c", f"{CHECK if turn < 0 else ''}\n{imports}\n{CHECK}"], check=True)


def test_importing_the_data_engine_is_quick_and_brings_nothing_heavy():
    code = "import json, sys, time; before = time.process_time(); import nst_data\nseconds = time.process_time() - before\n"
    code += "print(json.dumps([seconds, sorted({name.partition('.')[0] for name in sys.modules})]))"
    runs = [json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.05
    assert {"torch", "datasets", "polars", "pyarrow", "pydantic", "numpy"} & set(runs[0][1]) == set()


def test_a_loop_needs_no_pool_no_settings_and_no_reference(tiny_store, tmp_path):
    """What an edition and a generation were made from is found; a version stands for its name."""
    store, labeled, pool = tiny_store
    images, run = open_source(labeled, labeled=True), RunSettings(workers=0, decode_threads=1)
    generation, edition, teacher = (store.open(ref) for ref in ("tiny@gen-1", "tiny@gen-1.1", "tiny-teacher"))
    corpus = label(store, "face", teacher, open_source(pool), run=run)
    truth = write_class_folders(tmp_path / "truth", ["ant", "bee", "cat"], 5, 100)  # the images of the pool
    assert quality(store, corpus, truth).joined == quality(store, corpus, open_source(truth, labeled=True)).joined == 15
    assert diff(store, corpus, generation).changed == 0
    again = label_like(store, edition, [teacher], settings=LabelSettings(batch_size=4), run=run)
    settings = TrainSettings(**teacher.manifest.request.settings | {"epochs": 1})
    student = train(store, "face-student", images, settings, edition=again, run=run)
    assert student.manifest.counts.entries == again.manifest.counts.copies
    assert lineage(store, student).inputs[0].ref == again.ref
    assert evaluate(store, student, labeled, record="train") == evaluate(store, student, images)
    assert extend(store, "face@gen-1", run=run).manifest.counts.labeled == 15


def test_stores_and_sources_say_what_they_are(labeled_folder):
    assert repr(Store("/somewhere")) == "Store('/somewhere')"
    assert repr(open_source(labeled_folder, labeled=True)) == f"<ImageFolder {labeled_folder}: 12 images, 3 classes>"


WRONG_CALLS = 32


def wrong_calls(store, labeled, pool):
    """What a user may write, and what the line begins with or says."""
    images, without, settings = open_source(labeled, labeled=True), open_source(labeled), TrainSettings(model="test_resnet", image_size=16)
    unlabeled = r"labeled: was opened without its labels; open it with `labeled`: open_source\(..., labeled=True\)"
    edition, generation, teacher = (store.open(ref) for ref in ("tiny@gen-1.1", "tiny@gen-1", "tiny-teacher@gen-0"))
    return [
        (lambda: train(store, "net", without, settings), unlabeled),
        (lambda: train(store, "net", images, settings, validation=without), unlabeled),
        (lambda: train(store, "net", "photos", settings), r"`labeled`: expected a source, such as open_source\('photos'\), found 'photos'"),
        (lambda: label(store, "new", teacher, str(pool)), "`pool`: expected a source, such as open_source"),
        (lambda: balance(store, "tiny", exclude="photos"), r"`exclude`: expected a list of sources"),
        (lambda: balance(store, "tiny", exclude=["photos"]), r"`exclude\[0\]`: expected a source"),
        (lambda: train(store, "net", images, settings, edition=generation), "tiny@gen-1: expected an edition, found a generation"),
        (
            lambda: train(store, "net", images, settings, pool=without),
            "`pool` .*labeled: .* without an `edition`; add it, or",
        ),
        (lambda: label(store, "new", edition, open_source(pool)), "tiny@gen-1.1: expected a teacher, found an edition"),
        (lambda: label(store, "new", [], open_source(pool)), "`teacher`: expected a teacher or several, found none"),
        (lambda: label(store, "new", teacher, open_source(pool), calibration=without), unlabeled),
        (lambda: label_like(store, generation, teacher), "tiny@gen-1: expected an edition, found a generation"),
        (lambda: extend(store, edition), "tiny@gen-1.1: expected a generation, found an edition"),
        (lambda: balance(store, edition), "tiny@gen-1.1: expected a generation, found an edition"),
        (lambda: evaluate(store, edition, images), "tiny@gen-1.1: expected a teacher, found an edition"),
        (lambda: evaluate(store, teacher, without), unlabeled),
        (lambda: evaluate(store, teacher, labeled.parent / "labelled"), r"labelled: no such file or folder; did you mean \w+/labeled\?"),
        (lambda: evaluate(store, teacher, images, EvaluateSettings(suite="imagenet-a")), "expected the folder of imagenet-a as it was pub"),
        (lambda: evaluate(store, "test_resnet", images, record="test"), "`record`: test_resnet is not a teacher in the store"),
        (lambda: diff(store, teacher, edition), "tiny-teacher@gen-0: expected a generation or edition, found a teacher"),
        (lambda: quality(store, edition, without), unlabeled),
        (lambda: adopt(store, "new", without, probs="p", pool=without), "image files, which have no columns; expected a table with 'p'"),
        (lambda: lineage(store, "nothing"), r"there is nothing called 'nothing', `store.versions\(\)` shows what there is"),
        (lambda: balance("nst-store", generation), r"`store`: expected a store, such as Store\('nst-store'\), found 'nst-store'"),
        (lambda: balance(store, Path("tiny")), r"`generation`: expected a version or its name, found .*Path\('tiny'\)"),
        (lambda: train(store, "net", images, {"epochs": 1}), r"`settings`: expected TrainSettings\(\.\.\.\), found {'epochs': 1}"),
        (lambda: label(store, "new", teacher, images, run={"workers": 0}), r"`run`: expected ReadSettings\(\.\.\.\), found {'workers': 0}"),
        (lambda: label(store, "new", teacher, images, LabelRunSettings()), r"`settings`: expected LabelSettings\(\.\.\.\), found Label"),
        (lambda: TrainSettings(model="test_resnet", epoch=1), "TrainSettings: `epoch`: unknown key; did you mean epochs"),
        (lambda: TrainSettings(epochs=1), "TrainSettings: `model`: missing: A timm network"),
        (lambda: Noise(magnitude=-1), "Noise: `magnitude`: input should be greater than or equal to 0, found -1"),
        (lambda: TrainSettings(model="test_resnet", noise={"magnitud": 1}), "`noise.magnitud`: unknown key; did you mean magnitude"),
    ]


@pytest.mark.parametrize("number", range(WRONG_CALLS))
def test_wrong_use_from_python_is_one_line_that_names_settings(tiny_store, number):
    calls = wrong_calls(*tiny_store)
    assert len(calls) == WRONG_CALLS
    call, line = calls[number]
    with pytest.raises(NstError, match=line) as caught:
        call()
    assert not re.search(r"--[a-z]|\bnst [a-z]|\n", str(caught.value))


def test_a_pool_that_is_gone_is_asked_for_by_its_setting_and_a_finished_training_needs_none(tiny_store, tmp_path):
    store, labeled, pool = tiny_store
    images, edition, run = open_source(labeled, labeled=True), store.open("tiny@gen-1.1"), RunSettings(workers=0, decode_threads=1)
    settings = TrainSettings(**store.open("tiny-teacher").manifest.request.settings | {"epochs": 1})
    teacher = train(store, "moved", images, settings, edition=edition, run=run)
    pool.rename(tmp_path / "elsewhere")
    try:
        assert train(store, "moved", images, settings, edition=edition, run=run) == teacher
        with pytest.raises(NstError, match=r"tiny@gen-1\.1 was built from it.*`pool`"):
            train(store, "another", images, settings, edition=edition, run=run)
        assert store.unfinished() == []
    finally:
        (tmp_path / "elsewhere").rename(pool)


def test_work_is_shown_in_lines_unless_it_is_silenced(tiny_store, capsys):
    store = tiny_store[0]
    balance(store, "tiny", BalanceSettings(min_confidence=0, per_class=20))
    assert capsys.readouterr().err == "tiny@gen-1.1 already exists: same generation, images and settings\n"
    balance(store, "tiny", BalanceSettings(min_confidence=0, per_class=20), progress=Progress())
    assert capsys.readouterr().err == ""


def test_no_message_of_the_library_names_an_option_or_a_command():
    """But for the cards and the recipes that are written, which show commands."""
    literals = re.compile(r"\"[^\"\n]*\"")
    files = [file for package in ("nst_data", "nst_train") for file in (ROOT / package).rglob("*.py") if file.parent.name != "cards"]
    said = [text for file in files for line in file.read_text().splitlines() if '"""' not in line for text in literals.findall(line)]
    assert len(said) > 1000
    named = [text for text in said if re.search(r"(?<![\w-])--[a-z]|`nst [a-z]+", text)]
    options = sorted(word for text in named for word in re.findall(r"--[a-z-]+", text))
    assert options == ["--dry-run", "--shm-size", "--show-settings", "--sparse"]


NOUNS = [
    "store",
    "name",
    "corpus",
    "version",
    "generation",
    "edition",
    "teacher",
    "model",
    "before",
    "after",
    "repo",
    "reference",
    "recipe",
    "location",
    "path",
]
NOUNS += ["ref", "labeled", "pool", "table", "data", "truth", "settings"]


def test_help_on_settings_says_what_each_of_them_is():
    described = inspect.getdoc(TrainSettings).partition("\n\nArgs:\n")[2]
    assert re.findall(r"^    (\w+): \S", described, re.MULTILINE) == list(TrainSettings.model_fields)
    assert "    ratio: Pseudo-labeled images in a step, as a multiple of the labeled ones. [default: 1]" in described


def test_a_call_without_an_argument_says_what_is_missing(tmp_path):
    with pytest.raises(TypeError, match=r"balance\(\) missing 1 required positional argument: 'generation'"):
        balance(Store(tmp_path))


@pytest.mark.parametrize("package", [nst_data, nst_train])
def test_functions_describe_each_argument_and_take_all_but_nouns_by_keyword(package):
    functions = [one for one in (getattr(package, name) for name in dir(package)) if inspect.isfunction(one)]
    assert len(functions) == {"nst_data": 12, "nst_train": 10}[package.__name__]
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        described, _, rest = inspect.getdoc(function).partition("Args:\n")[2].partition("\n\nReturns:\n")
        assert re.findall(r"^    (\w+): ", described, re.MULTILINE) == [one.name for one in parameters], function
        assert "\n\nRaises:\n" in rest, function
        assert {one.name for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY} <= set(NOUNS), function
