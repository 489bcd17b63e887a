"""Image-text models as teachers: the words of the classes become a linear layer, and all else is as for any teacher."""

import json

import numpy as np
import pytest
import torch
from conftest import write_class_folders, write_pool
from image_text import tokenizer, write_clip, write_naflex, write_siglip
from labels import RUN, SETTINGS, table_rows, write_teacher
from nst_cli.main import app
from PIL import Image
from test_teachers import write_transformer
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, pipeline
from typer.testing import CliRunner
from wording import is_line, pattern

from nst_data.errors import NstError, UsageError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sharing.public_form import published_manifest
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train import ZeroShot, evaluate, extend, label
from nst_train.classifiers import zero_shot
from nst_train.classifiers.teachers import load_classifier
from nst_train.labeling.labeling import Labeling
from nst_train.settings import LabelSettings
from nst_train.zero_shot_settings import DEFAULT_PROMPTS

NAMES = ["ant", "Kaffee-Bär mit Öl", "t-shirt"]
SYNONYMS = {"ant": None, "Kaffee-Bär mit Öl": "bear", "t-shirt": ["t-shirt", "tee"]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("models") / "siglip")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("images") / "pool", 3, 3)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def label_pool(store, pool, teacher, corpus="bugs", **settings):
    return label(store, corpus, teacher, open_source(str(pool)), LabelSettings(**SETTINGS.model_dump() | settings), run=RUN)


def run(*arguments):
    return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)


def answer(teacher, image, tmp_path):
    """The probabilities of an image before any rounding, shape (classes,), and the classifier's lineage entry."""
    classifier, entry = load_classifier(teacher, Store(tmp_path / "unused"))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with torch.no_grad():
        logits = classifier.network(classifier.preprocessing.finish(classifier.preprocessing.prepare(pixels)[None]))
    return logits.softmax(dim=1)[0].numpy(), entry


def own_answer(teacher, image, texts):
    """The softmax of the model's own logits for these texts, by transformers alone, shape (texts,)."""
    folder = teacher.removeprefix("local-dir:")
    network = AutoModel.from_pretrained(folder).eval()
    length = {"padding": "max_length", "max_length": 64} if "siglip" in network.config.model_type else {"padding": True}
    tokens = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **length)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    with torch.no_grad():
        return network(**tokens, **pixels).logits_per_image.softmax(dim=1)[0].numpy()


def photograph(size=(40, 32), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("seed", [0, 1])
def test_clip_answers_as_the_pipeline_of_transformers_does(clip, tmp_path, seed):
    image = photograph(seed=seed)
    ours, _ = answer(ZeroShot(model=clip, class_names=NAMES, prompts=["this is a photo of {}!"]), image, tmp_path)
    reference = pipeline("zero-shot-image-classification", model=clip.removeprefix("local-dir:"))
    scores = {one["label"]: one["score"] for one in reference(image, candidate_labels=NAMES, hypothesis_template="this is a photo of {}!")}
    assert ours == pytest.approx([scores[name] for name in NAMES], abs=1e-5)
    assert len(set(np.round(ours, 4))) == 3


@pytest.fixture(scope="module")
def naflex(tmp_path_factory):
    return write_naflex(tmp_path_factory.mktemp("models") / "naflex")


@pytest.mark.parametrize("model", ["clip", "siglip", "naflex"])
def test_probabilities_are_the_softmax_of_the_models_own_logits(model, request, tmp_path):
    teacher, image = request.getfixturevalue(model), photograph()
    ours, _ = answer(ZeroShot(model=teacher, class_names=NAMES, prompts=["a {}"]), image, tmp_path)
    theirs = own_answer(teacher, image, [f"a {name}" for name in NAMES])
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert theirs.std() > 0.01


@pytest.mark.slow
def test_a_batch_of_patches_that_is_not_full_is_labeled(naflex, store, tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 5)
    (pool / "broken.png").write_bytes(b"no image")
    version = label_pool(store, pool, ZeroShot(model=naflex, class_names=NAMES))
    (single,) = table_rows(label_pool(store, write_pool(tmp_path / "one", 1, 1), ZeroShot(model=naflex, class_names=NAMES), "one"))
    assert (version.manifest.counts.labeled, version.manifest.counts.errors) == (5, 1)
    assert table_rows(version)[0]["probs"] == pytest.approx(single["probs"], abs=2e-3)


@pytest.mark.slow
def test_how_many_threads_there_are_changes_no_bit_of_the_text_side(clip, tmp_path, monkeypatch):
    heads = []
    for threads in (1, 3):
        monkeypatch.setattr(zero_shot, "cpus_of_this_process", lambda threads=threads: threads)
        torch.set_num_threads(threads)
        classifier, _ = load_classifier(ZeroShot(model=clip, class_names=[f"class {number}" for number in range(40)]), Store(tmp_path))
        heads.append(classifier.network.head.weight)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert torch.equal(*heads)


def test_images_are_prepared_as_the_models_own_processor_says(tmp_path):
    settings = {"size": {"shortest_edge": 30}, "image_mean": [0.2, 0.5, 0.7], "image_std": [0.3, 0.2, 0.5], "resample": 2}
    teacher, image = write_clip(tmp_path / "clip", **settings), photograph((70, 50))
    ours, _ = answer(ZeroShot(model=teacher, class_names=NAMES, prompts=["{}"]), image, tmp_path)
    assert ours == pytest.approx(own_answer(teacher, image, NAMES), abs=1e-5)
    assert abs(ours - own_answer(write_clip(tmp_path / "other"), image, NAMES)).max() > 1e-3


def test_a_class_is_the_mean_of_the_directions_of_all_its_texts(clip, tmp_path):
    prompts, image = ["a {}", "{}, {}!"], photograph()
    ours, _ = answer(ZeroShot(model=clip, class_names=SYNONYMS, prompts=prompts), image, tmp_path)
    network = AutoModel.from_pretrained(clip.removeprefix("local-dir:")).eval()
    texts = [["a ant", "ant, ant!"], ["a bear", "bear, bear!"], ["a t-shirt", "t-shirt, t-shirt!", "a tee", "tee, tee!"]]
    pixels = AutoImageProcessor.from_pretrained(clip.removeprefix("local-dir:"))(images=image, return_tensors="pt")
    with torch.no_grad():
        directions = []
        for of_class in texts:
            features = network.get_text_features(**tokenizer()(of_class, padding=True, return_tensors="pt")).pooler_output
            mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
            directions.append(mean / mean.norm())
        of_image = network.get_image_features(**pixels).pooler_output[0]
        logits = network.logit_scale.exp() * torch.stack(directions) @ (of_image / of_image.norm())
    assert ours == pytest.approx(logits.softmax(dim=0).numpy(), abs=1e-5)


def test_nothing_in_a_template_means_anything_but_the_two_braces():
    spec = ZeroShot(model="owner/clip", class_names=["{0}", "100%"], prompts=["%s {name} {} {{}}", "\\1 {}"])
    assert spec.texts("{0}") == ["%s {name} {0} {{0}}", "\\1 {0}"]
    assert spec.texts("100%") == ["%s {name} 100% {100%}", "\\1 100%"]


def test_a_pool_is_labeled_like_by_any_teacher(clip, pool, store):
    version = label_pool(store, pool, ZeroShot(model=clip, class_names=SYNONYMS, prompts=["a {}"]))
    assert version.manifest.class_names == NAMES
    classifier, entry = load_classifier(ZeroShot(model=clip, class_names=SYNONYMS, prompts=["a {}"]), store)
    for row in table_rows(version):
        pixels = torch.from_numpy(np.array(Image.open(pool / row["key"]))).permute(2, 0, 1)
        probs = classifier.network(classifier.preprocessing.prepare(pixels)[None]).softmax(dim=1)[0].tolist()
        assert row["probs"] == pytest.approx(probs, abs=2e-3)
        assert row["confidence"] == pytest.approx(max(probs), abs=1e-5)
    kept = version.manifest.request.inputs.teacher
    assert kept == entry
    assert kept.texts.prompts == ["a {}"]
    assert kept.texts.synonyms == {"ant": ["ant"], "Kaffee-Bär mit Öl": ["bear"], "t-shirt": ["t-shirt", "tee"]}
    published = published_manifest(version, store).request.inputs.teacher
    assert (published.ref, published.texts, published.digest) == ("clip", entry.texts, entry.digest)
    again = label_pool(store, pool, ZeroShot(model=clip, class_names=SYNONYMS, prompts=["a {}"]))
    assert again.ref == version.ref


def test_labeled_images_are_not_asked_for_where_a_zero_shot_teacher_labeled_again(clip, pool, store, tmp_path):
    version = label_pool(store, pool, ZeroShot(model=clip, class_names=NAMES, prompts=["a {}"]))
    edition = balance(store, version, BalanceSettings(min_confidence=0, per_class=2))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    words = ["--teacher", clip, "--class-names", str(tmp_path / "names.txt"), "--store", str(store.root)]
    done = CliRunner().invoke(app, ["label", "--like", edition.ref, *words])
    assert done.exit_code == 0, done.output
    assert "next: nst train --pseudo " in done.stdout


@pytest.mark.slow
def test_whatever_shapes_the_labels_is_in_the_digest(clip, tmp_path):
    others = {change: write_clip(tmp_path / change, seed=int(change == "weights")) for change in ("same", "weights", "tokenizer")}
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"a": 69', '"a": 70').replace('"b": 70', '"b": 69'))
    words = {"class_names": SYNONYMS, "prompts": ["a {}"]}
    changes = [{"model": model} for model in others.values()]
    changes += [
        {"class_names": {"bee": "ant"} | {name: SYNONYMS[name] for name in NAMES[1:]}},
        {"class_names": {name: SYNONYMS[name] for name in reversed(NAMES)}},
        {"class_names": SYNONYMS | {"ant": ["ant", "emmet"]}},
        {"prompts": ["the {}"]},
    ]
    entries = [load_classifier(ZeroShot(**{"model": clip} | words | change), Store(tmp_path / "unused"))[1] for change in changes]
    assert entries[0].digest == load_classifier(ZeroShot(model=clip, **words), Store(tmp_path / "unused"))[1].digest
    assert len({entry.digest for entry in entries}) == len(changes)
    assert [entry.weights_sha256 == entries[0].weights_sha256 for entry in entries] == [True, False, *[True] * 5]


def test_the_text_side_is_left_behind(clip, tmp_path):
    classifier, _ = load_classifier(ZeroShot(model=clip, class_names=NAMES), Store(tmp_path))
    whole = AutoModel.from_pretrained(clip.removeprefix("local-dir:"))
    image_side = sum(one.numel() for one in (*whole.vision_model.parameters(), *whole.visual_projection.parameters()))
    assert classifier.parameters == image_side + whole.logit_scale.numel() + 12 * len(NAMES)


@pytest.mark.slow
def test_a_labeling_that_was_stopped_goes_on_to_the_same_bytes(clip, pool, tmp_path, monkeypatch):
    spec = ZeroShot(model=clip, class_names=NAMES)
    whole = label_pool(Store(tmp_path / "whole"), pool, spec)
    store, write = Store(tmp_path / "stopped"), Labeling._write

    def stop_at_the_second_shard(self, batch, prediction):
        if batch.shard == 1:
            raise KeyboardInterrupt
        write(self, batch, prediction)

    with monkeypatch.context() as patch:
        patch.setattr(Labeling, "_write", stop_at_the_second_shard)
        with pytest.raises(KeyboardInterrupt):
            label_pool(store, pool, spec)
    assert list(store.unfinished()) == ["bugs@gen-1"]
    resumed = label_pool(store, pool, spec)
    assert resumed.manifest.files == whole.manifest.files
    assert resumed.manifest.digest == whole.manifest.digest


@pytest.mark.slow
def test_it_is_exported_with_its_text_side_inside(clip, words, tmp_path):
    names = ["--class-names", words / "names.yaml", "--prompts", words / "prompts.txt", "--store", tmp_path]
    result = run("export", clip, tmp_path / "clip.pt2", "--to", "torch-export", *names, "--json")
    assert (result.exit_code, json.loads(result.stdout)["class_names"]) == (0, ["ant", "bee", "cat"])
    spec = ZeroShot(model=clip, class_names=str(words / "names.yaml"), prompts=str(words / "prompts.txt"))
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        ours = load_classifier(spec, Store(tmp_path))[0].network(pixels)
        assert torch.allclose(torch.export.load(tmp_path / "clip.pt2").module()(pixels), ours, atol=1e-4)
    result = run("export", "bugs@gen-1", tmp_path / "labels", *names)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_it_is_not_noised(clip, pool, store):
    with pytest.raises(NstError, match="`noise`: this teacher cannot be noised"):
        label_pool(store, pool, ZeroShot(model=clip, class_names=NAMES), noise=True)


@pytest.mark.slow
def test_it_is_one_of_an_ensemble(clip, pool, store, tmp_path):
    other = write_teacher(tmp_path / "net", ["t-shirt", "ant", NAMES[1]])
    parts = [ZeroShot(model=clip, class_names=NAMES), other]
    single = [table_rows(label_pool(store, pool, one, f"part-{number}")) for number, one in enumerate(parts)]
    both = label_pool(store, pool, parts, "both")
    for first, second, mean in zip(*single, table_rows(both), strict=True):
        second = [second["probs"][index] for index in (1, 2, 0)]
        assert mean["probs"] == pytest.approx(np.mean([first["probs"], second], axis=0), abs=2e-3)
    assert [one.texts is None for one in both.manifest.request.inputs.teachers.values()] == [False, True]


@pytest.mark.slow
def test_a_grown_pool_is_labeled_on_without_the_files_of_words(clip, pool, store, tmp_path):
    first = label_pool(store, pool, ZeroShot(model=clip, class_names=SYNONYMS, prompts=["a {}"]))
    grown = write_pool(tmp_path / "grown", 3, 4)
    version = extend(store, first, open_source(str(grown)), run=RUN)
    whole = label_pool(store, grown, ZeroShot(model=clip, class_names=SYNONYMS, prompts=["a {}"]), "whole")
    assert [row["probs"] for row in table_rows(version)] == [row["probs"] for row in table_rows(whole)]


@pytest.fixture
def words(tmp_path):
    """Files of names, synonyms and templates."""
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n", "utf-8")
    (tmp_path / "names.yaml").write_text("ant: [ant, emmet]\nbee:\ncat: [cat, Käthchen]\n", "utf-8")
    (tmp_path / "prompts.txt").write_text("a photo of a {}.\n{} auf Öl\n", "utf-8")
    return tmp_path


def test_the_commands_label_calibrate_and_evaluate_by_files_of_words(clip, words, pool, tmp_path):
    scored = write_class_folders(tmp_path / "scored", ["ant", "bee", "cat"], 4)
    names, options = ["--class-names", words / "names.yaml"], ["--prompts", words / "prompts.txt", "--store", tmp_path / "store"]
    result = run("label", pool, "--teacher", clip, *names, *options, "--corpus", "bugs", "--calibrate", scored, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["counts"]["calibration"]["images"] == 12
    card = (tmp_path / "store" / "corpora" / "bugs" / "gen-1" / "README.md").read_text("utf-8")
    assert "; zero-shot, by the class names in “a photo of a \\{\\}\\.”, “\\{\\} auf Öl”; its accuracy is not known here" in card
    assert "# the words in these files are in nst.json: `texts` of the teacher\n" in card
    assert "--class-names class-names.yaml --prompts prompts.txt" in card
    result = run("evaluate", clip, "--data", scored, *names, *options, "--json")
    (measured,) = json.loads(result.stdout).values()
    spec = ZeroShot(model=clip, class_names=str(words / "names.yaml"), prompts=str(words / "prompts.txt"))
    assert spec.synonyms == {"ant": ("ant", "emmet"), "bee": ("bee",), "cat": ("cat", "Käthchen")}
    assert spec.templates == ("a photo of a {}.", "{} auf Öl")
    assert measured == evaluate(Store(tmp_path / "store"), spec, str(scored))
    table = tmp_path / "scored.csv"
    table.write_text(
        "path,label\n"
        + "\n".join(f"scored/{name}/00{index}.png,{number}" for number, name in enumerate(["ant", "bee", "cat"]) for index in range(4))
    )
    assert measured["top1"] == json.loads(run("evaluate", clip, "--data", table, *names, *options, "--json").stdout)[clip]["top1"]


def test_the_default_templates_are_those_of_the_docs():
    assert ZeroShot(model="owner/clip", class_names=NAMES).templates == DEFAULT_PROMPTS
    assert len(DEFAULT_PROMPTS) == 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"class_names": ["ant"]}, "class_names: … at least two …, found 1"),
        ({"class_names": ["ant", "ant", "bee"]}, "class_names: 'ant' … twice; … distinct"),
        ({"class_names": {"ant": [], "bee": None}}, "class_names: ant: … synonyms as a list"),
        ({"class_names": ["ant", "be\u001be"]}, "class_names: … printable characters"),
        ({"class_names": NAMES, "prompts": ["a photo"]}, "prompts: template 1 is 'a photo'; … {} in the place"),
        ({"class_names": NAMES, "prompts": []}, "prompts: … 'a photo of a {}.', found none"),
    ],
)
def test_words_that_cannot_be_are_refused(given, says):
    with pytest.raises(UsageError, match=pattern(says)):
        ZeroShot(model="owner/clip", **given)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("names.txt", "ant\n\nbee\n", "--class-names FILE: line 2 is empty; … class 1"),
        ("names.yaml", "ant: [a, b\n", "--class-names FILE, line 1: … YAML list …, or lines …; a bracket is not closed"),
        ("names.yaml", "ant:\nant: [emmet]\n", "--class-names FILE: 'ant' … twice; … distinct"),
        ("names.yaml", "ant: {a: b}\nbee:\n", "--class-names FILE: ant: … synonyms as a list"),
        (
            "prompts.txt",
            "a {}\na photo\n",
            "--prompts FILE: line 2 is 'a photo'; … {} in the place",
        ),
        ("prompts.txt", None, "--prompts FILE: No such file …; … one template per line"),
    ],
)
def test_files_of_words_that_cannot_be_are_refused_in_one_line(clip, words, pool, tmp_path, file, content, says):
    path = words / file
    path.unlink() if content is None else path.write_text(content)
    names = path if "names" in file else words / "names.txt"
    result = run(
        "label", pool, "--teacher", clip, "--class-names", names, "--prompts", words / "prompts.txt", "--corpus", "c", "--store", tmp_path
    )
    assert result.exit_code == 2
    assert is_line(result.stderr.removesuffix("\n"), f"nst: {says.replace('FILE', str(path))}…")


def test_a_model_that_is_no_image_text_model_is_refused_in_one_line(words, pool, tmp_path):
    vit, timm = write_transformer(tmp_path / "vit"), write_teacher(tmp_path / "net", ["ant", "bee"])
    for name, kind in ((vit, "vit"), (timm, "test_resnet"), ("resnet18", "another network")):
        with pytest.raises(UsageError, match=f"^{name}:.*CLIP or SigLIP, found {kind}; remove"):
            load_classifier(ZeroShot(model=name, class_names=["ant", "bee"]), Store(tmp_path))
    result = run("label", pool, "--teacher", vit, "--class-names", words / "names.txt", "--corpus", "c", "--store", tmp_path)
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"nst: --class-names {words / 'names.txt'}: for image-text models such as CLIP or SigLIP, and {vit} is not one; remove it\n"
    )


def test_an_image_text_model_without_class_names_says_what_it_lacks(clip, tmp_path):
    with pytest.raises(UsageError, match=r"an image-text model.*no classes.*`class_names` FILE"):
        load_classifier(clip, Store(tmp_path))


def test_a_text_that_is_too_long_is_refused_rather_than_cut(clip, tmp_path):
    with pytest.raises(UsageError, match=f"{clip}: 'x+' has 102 tokens.*77; shorten"):
        load_classifier(ZeroShot(model=clip, class_names=["x" * 100, "y"], prompts=["{}"]), Store(tmp_path))


def test_only_safetensors_are_read(tmp_path):
    name = write_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").rename(tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(NstError, match=r"expected a folder with config\.json and model\.safetensors"):
        load_classifier(ZeroShot(model=name, class_names=NAMES), Store(tmp_path))


def test_weights_that_are_missing_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    name, path = write_clip(tmp_path / "clip"), tmp_path / "clip" / "model.safetensors"
    weights = load_file(path)
    save_file({key: value for key, value in weights.items() if key != "text_projection.weight"}, path, {"format": "pt"})
    with pytest.raises(NstError, match=r"image-text model, missing 1 tensor \(text_projection\.weight\)"):
        load_classifier(ZeroShot(model=name, class_names=NAMES), Store(tmp_path))
