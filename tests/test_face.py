"""What `import nst_data` and `import nst_train` offer, and what a user of Python is told."""

import ast
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_class_folders
from nst_cli.commands import COMMANDS

import nst_data
import nst_train
from nst_data import BalanceSettings, Engine, NstError, Progress, Store, adopt, balance, diff, lineage, open_source, quality
from nst_train import (
    EvaluateSettings,
    LabelRunSettings,
    LabelSettings,
    Noise,
    RunSettings,
    TrainSettings,
    evaluate,
    extend,
    label,
    label_like,
    load_recipe,
    train,
)

ROOT = Path(__file__).parent.parent
DATA = """
BalanceSettings Churn Engine Exported Features Indexes LineageNode NstError PickSettings Picks Place Progress Quality Source Store
StreamedEdition UsageError Version __version__
add_copies adopt balance copy diff export freeze hold_out lineage most_confident open_source pull push quality
reject reject_duplicates reject_unsure remove_features
"""
FRAMES = {"add_copies", "most_confident", "reject", "reject_duplicates", "reject_unsure"}  # from lazy frame to lazy frame
TRAIN = """
EmbedRunSettings EmbedSettings EvaluateSettings ExportedNetwork Generation LabelRunSettings LabelSettings Noise ReadSettings Recipe
RunSettings TrainSettings ZeroShot __version__
embed evaluate export_network extend label label_like load_recipe pick register_network self_training train
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


@pytest.mark.parametrize("package", ["nst_data", "nst_train"])
def test_importing_a_package_brings_only_that_until_a_name_is_used(package):
    code = f"import sys; before = set(sys.modules); import {package}; print(*(set(sys.modules) - before))"
    brought = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert [name for name in brought if name.partition(".")[0] not in sys.stdlib_module_names] == [package]


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
    student = train(store, "face-student", images, settings, pseudo=again, run=run)
    assert student.manifest.counts.entries == again.manifest.counts.copies
    assert lineage(store, student).inputs[0].ref == again.ref
    assert evaluate(store, student, labeled, record="train") == evaluate(store, student, images)
    assert extend(store, "face@gen-1", run=run).manifest.counts.labeled == 15


def test_stores_and_sources_say_what_they_are(labeled_folder):
    assert repr(Store("/somewhere")) == "Store('/somewhere')"
    assert repr(open_source(labeled_folder, labeled=True)) == f"<ImageFolder {labeled_folder}: 12 images, 3 classes>"


UNLABELED = r"labeled: was opened without its labels; open it with `labeled`: open_source\(..., labeled=True\)"
WRONG_CALLS = {  # what a user may write, and what the line says
    "training-without-labels": (lambda it: train(it.store, "net", it.without, it.settings), UNLABELED),
    "validation-without-labels": (lambda it: train(it.store, "net", it.images, it.settings, validation=it.without), UNLABELED),
    "training-on-a-location": (
        lambda it: train(it.store, "net", "photos", it.settings),
        r"`labeled`: expected a source, such as open_source\('photos'\), found 'photos'",
    ),
    "labeling-a-location": (lambda it: label(it.store, "new", it.teacher, str(it.pool)), "`pool`: expected a source, such as open_source"),
    "excluding-a-location": (lambda it: balance(it.store, "tiny", exclude="photos"), r"`exclude`: expected a list of sources"),
    "excluding-a-list-of-locations": (lambda it: balance(it.store, "tiny", exclude=["photos"]), r"`exclude\[0\]`: expected a source"),
    "training-on-a-generation": (
        lambda it: train(it.store, "net", it.images, it.settings, pseudo=it.generation),
        "tiny@gen-1: expected an edition, found a generation",
    ),
    "a-pool-without-an-edition": (
        lambda it: train(it.store, "net", it.images, it.settings, pool=it.without),
        "`pool` .*labeled: .* without `pseudo`; add it, or",
    ),
    "labeling-by-an-edition": (
        lambda it: label(it.store, "new", it.edition, open_source(it.pool)),
        "tiny@gen-1.1: expected a teacher, found an edition",
    ),
    "labeling-by-nobody": (
        lambda it: label(it.store, "new", [], open_source(it.pool)),
        "`teacher`: expected a teacher or several, found none",
    ),
    "calibration-without-labels": (lambda it: label(it.store, "new", it.teacher, open_source(it.pool), calibration=it.without), UNLABELED),
    "labeling-like-a-generation": (
        lambda it: label_like(it.store, it.generation, it.teacher),
        "tiny@gen-1: expected an edition, found a generation",
    ),
    "extending-an-edition": (lambda it: extend(it.store, it.edition), "tiny@gen-1.1: expected a generation, found an edition"),
    "balancing-an-edition": (lambda it: balance(it.store, it.edition), "tiny@gen-1.1: expected a generation, found an edition"),
    "evaluating-an-edition": (lambda it: evaluate(it.store, it.edition, it.images), "tiny@gen-1.1: expected a teacher, found an edition"),
    "evaluating-without-labels": (lambda it: evaluate(it.store, it.teacher, it.without), UNLABELED),
    "a-location-that-is-not-there": (
        lambda it: evaluate(it.store, it.teacher, it.labeled.parent / "labelled"),
        r"labelled: no such file or folder; did you mean \w+/labeled\?",
    ),
    "a-suite-of-other-images": (
        lambda it: evaluate(it.store, it.teacher, it.images, EvaluateSettings(suite="imagenet-a")),
        "expected the folder of imagenet-a as it was pub",
    ),
    "recording-of-an-unsealed-model": (
        lambda it: evaluate(it.store, "test_resnet", it.images, record="test"),
        "`record`: test_resnet is not a teacher in the store",
    ),
    "comparing-a-teacher": (
        lambda it: diff(it.store, it.teacher, it.edition),
        "tiny-teacher@gen-0: expected a generation or edition, found a teacher",
    ),
    "quality-without-labels": (lambda it: quality(it.store, it.edition, it.without), UNLABELED),
    "adopting-image-files": (
        lambda it: adopt(it.store, "new", it.without, probs="p", pool=it.without),
        "image files, which have no columns; expected a table with 'p'",
    ),
    "lineage-of-nothing": (
        lambda it: lineage(it.store, "nothing"),
        r"there is nothing called 'nothing', `store.versions\(\)` shows what there is",
    ),
    "a-location-as-store": (
        lambda it: balance("nst-store", it.generation),
        r"`store`: expected a store, such as Store\('nst-store'\), found 'nst-store'",
    ),
    "a-path-as-version": (
        lambda it: balance(it.store, Path("tiny")),
        r"`version`: expected a version or its name, found .*Path\('tiny'\)",
    ),
    "labels-of-a-path-as-teacher": (
        lambda it: label(it.store, "new", Path("x"), it.images),
        r"`teacher`: expected a version or its name, ZeroShot\(\.\.\.\), or a list of these, found .*Path\('x'\)",
    ),
    "a-number-as-name": (lambda it: label(it.store, 5, it.teacher, it.images), "`corpus`: expected text, found 5"),
    "one-source-of-two-that-is-none": (
        lambda it: balance(it.store, it.generation, exclude=[it.images, 5]),
        r"`exclude\[1\]`: expected a source, such as open_source\('photos'\), found 5",
    ),
    "nothing-to-exclude": (lambda it: balance(it.store, it.generation, exclude=None), "`exclude`: expected a list of sources"),
    "an-unknown-engine": (lambda it: Engine("duckdb"), "`engine`: expected 'polars' or 'spark', found 'duckdb'"),
    "more-than-all-unreadable": (
        lambda it: balance(it.store, it.generation, max_unreadable=50),
        "`max_unreadable`: expected a number of at most 1, found 50",
    ),
    "a-name-that-is-none": (lambda it: it.store.open(5), "expected a version or its name, found 5"),
    "a-store-of-nothing": (lambda it: Store(None), "expected the folder of a store or s3://BUCKET/PREFIX, found None"),
    "sources-of-none": (lambda it: open_source([]), "expected the location of a source, found an empty list"),
    "a-recipe-that-is-a-dictionary": (lambda it: load_recipe({"name": "x"}), r"`path`: expected a path or text, found {'name': 'x'}"),
    "settings-as-a-dictionary": (
        lambda it: train(it.store, "net", it.images, {"epochs": 1}),
        r"`settings`: expected TrainSettings\(\.\.\.\), found {'epochs': 1}",
    ),
    "run-as-a-dictionary": (
        lambda it: label(it.store, "new", it.teacher, it.images, run={"workers": 0}),
        r"`run`: expected ReadSettings\(\.\.\.\), found {'workers': 0}",
    ),
    "run-as-settings": (
        lambda it: label(it.store, "new", it.teacher, it.images, LabelRunSettings()),
        r"`settings`: expected LabelSettings\(\.\.\.\), found Label",
    ),
    "an-unknown-setting": (
        lambda it: TrainSettings(model="test_resnet", epoch=1),
        "TrainSettings: `epoch`: unknown key; did you mean epochs",
    ),
    "a-missing-setting": (lambda it: TrainSettings(epochs=1), "TrainSettings: `model`: missing: A timm model name"),
    "noise-below-0": (lambda it: Noise(magnitude=-1), "Noise: `magnitude`: expected a number of at least 0, found -1"),
    "an-unknown-setting-of-noise": (
        lambda it: TrainSettings(model="test_resnet", noise={"magnitud": 1}),
        "`noise.magnitud`: unknown key; did you mean magnitude",
    ),
}


@pytest.fixture
def it(tiny_store):
    """What the calls are about."""
    store, labeled, pool = tiny_store
    return SimpleNamespace(
        store=store,
        labeled=labeled,
        pool=pool,
        images=open_source(labeled, labeled=True),
        without=open_source(labeled),
        settings=TrainSettings(model="test_resnet", image_size=16),
        edition=store.open("tiny@gen-1.1"),
        generation=store.open("tiny@gen-1"),
        teacher=store.open("tiny-teacher@gen-0"),
    )


@pytest.mark.parametrize(("call", "line"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_use_from_python_is_one_line_that_names_settings(it, call, line):
    with pytest.raises(NstError, match=line) as caught:
        call(it)
    assert not re.search(r"--[a-z]|\bnst [a-z]|\n", str(caught.value))


@pytest.mark.parametrize("package", ["nst_data", "nst_train"])
def test_the_signatures_of_settings_name_each_setting(package):
    code = f"import inspect, {package} as face\nfor name in dir(face):\n    one = getattr(face, name)\n"
    code += "    if hasattr(one, 'model_fields'):\n        assert list(inspect.signature(one).parameters) == list(one.model_fields), name\n"
    subprocess.run([sys.executable, "-c", code + "print(end='')"], check=True)


def test_a_pool_that_is_gone_is_asked_for_by_its_setting_and_a_finished_training_needs_none(tiny_store, tmp_path):
    store, labeled, pool = tiny_store
    images, edition, run = open_source(labeled, labeled=True), store.open("tiny@gen-1.1"), RunSettings(workers=0, decode_threads=1)
    settings = TrainSettings(**store.open("tiny-teacher").manifest.request.settings | {"epochs": 1})
    teacher = train(store, "moved", images, settings, pseudo=edition, run=run)
    pool.rename(tmp_path / "elsewhere")
    try:
        assert train(store, "moved", images, settings, pseudo=edition, run=run) == teacher
        with pytest.raises(NstError, match=r"tiny@gen-1\.1 was built from it.*`pool`"):
            train(store, "another", images, settings, pseudo=edition, run=run)
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
    literals, named = re.compile(r"\"[^\"\n]*\""), re.compile(rf"(?<![\w-])--[a-z][a-z-]*|\bnst (?:{'|'.join(COMMANDS)})\b")
    files = [file for package in ("nst_data", "nst_train") for file in (ROOT / package).rglob("*.py")]
    files = [file for file in files if file.parent.name != "cards" and file != ROOT / "nst_train" / "starting" / "writing.py"]
    said = [text for file in files for line in file.read_text().splitlines() if '"""' not in line for text in literals.findall(line)]
    assert len(said) > 1000
    # options of docker and tar; the name of the Spark application, of the recipe's schema, and of what measured a result on the Hub
    assert sorted(word for text in said for word in named.findall(text)) == [
        "--shm-size",
        "--sparse",
        "nst balance",
        "nst evaluate",
        "nst run",
    ]


NOUNS = [
    "store",
    "name",
    "corpus",
    "version",
    "candidates",
    "destination",
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
NOUNS += ["ref", "labeled", "pool", "table", "data", "truth", "settings", "make"]


def test_help_on_settings_says_what_each_of_them_is():
    described = inspect.getdoc(TrainSettings).partition("\n\nArgs:\n")[2]
    assert re.findall(r"^    (\w+): \S", described, re.MULTILINE) == list(TrainSettings.model_fields)
    assert "    ratio: Pseudo-labeled images per step, as a multiple of the labeled ones. [default: 1]" in described


def test_a_call_without_an_argument_says_what_is_missing(tmp_path):
    with pytest.raises(TypeError, match=r"balance\(\) missing 1 required positional argument: 'version'"):
        balance(Store(tmp_path))


def functions_of(package):
    return [one for one in (getattr(package, name) for name in dir(package)) if inspect.isfunction(one)]


def types_in(hint):
    return {one for part in typing.get_args(hint) for one in types_in(part)} or ({hint} if inspect.isclass(hint) else set())


@pytest.mark.parametrize("package", [nst_data, nst_train])
def test_every_type_of_ours_in_a_signature_is_imported_from_the_top(package):
    public = {getattr(one, name) for one in (nst_data, nst_train) for name in dir(one)}
    used = {one for function in functions_of(package) for hint in typing.get_type_hints(function).values() for one in types_in(hint)}
    ours = {one for one in used if one.__module__.startswith(("nst_data.", "nst_train."))}
    assert {nst_data.Version, nst_data.Store, nst_data.Progress} <= ours
    assert ours - public == set()


@pytest.mark.parametrize("package", [nst_data, nst_train])
def test_functions_describe_each_argument_and_take_all_but_nouns_by_keyword(package):
    functions = functions_of(package)
    assert len(functions) == {"nst_data": 18, "nst_train": 11}[package.__name__]
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        described, *rest = re.split(r"\n\n(?=Returns:|Raises:)", inspect.getdoc(function).partition("Args:\n")[2])
        assert re.findall(r"^    (\w+): ", described, re.MULTILINE) == [one.name for one in parameters], function
        if function.__name__ not in FRAMES:
            assert rest[-1].startswith("Raises:\n"), function
            assert {one.name for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY} <= set(NOUNS), function


@pytest.mark.parametrize("package", [nst_data, nst_train])
def test_a_word_means_the_same_in_all_functions(package):
    """`generation` and `edition` are numbers, as on the command line; a version is a `version`, or called by its part in the work."""
    for function in functions_of(package):
        hints = typing.get_type_hints(function)
        assert {hints[name] for name in ("generation", "edition") if name in hints} <= {int | None}, function
        of_versions = {name for name, hint in hints.items() if nst_data.Version in types_in(hint)} - {"return"}
        assert of_versions <= {"version", "before", "after", "pseudo", "reviews", "teacher", "model", "candidates", "truth"}, function
