"""Corruptions and attacks on a classifier's own images, each against the same thing done by hand; outcomes that are kept."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import picture
from transformers import ViTImageProcessor

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.inference import choose_computation
from nst_train.classifiers.teachers import Teacher
from nst_train.evaluation.attacks import PixelClassifier, fgsm, pgd
from nst_train.evaluation.conditions import Corrupted, FastGradientSign, image_seed
from nst_train.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from nst_train.evaluation.measuring import SuiteRunner
from nst_train.evaluation.suites import open_suite
from nst_train.evaluation.trials import Candidate, Trial, observe
from nst_train.evaluation_settings import EvaluateSettings
from nst_train.settings import ReadSettings
from nst_train.transforms.preprocessing import ProcessorPreprocessing, TimmPreprocessing

NAMES = ["ant", "bee", "cat"]
IMAGES = 7


def candidate_of(seed):
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    preprocessing = TimmPreprocessing((3, 32, 32), "bicubic", (0.5, 0.4, 0.3), (0.25, 0.2, 0.2), 1.0, None, exact=True)
    return Candidate(f"net {seed}", Classifier(network, preprocessing, NAMES), f"net {seed}")


class Constant(torch.nn.Module):
    """Takes every image for the first class."""

    def forward(self, images):
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        path = top / NAMES[index % 3] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        picture(index % 3, index, 40).save(path)
    return top


@pytest.fixture
def source(folder):
    return open_source(str(folder), labeled=True)


def suite(name, source, reference=None, **settings):
    return open_suite(name, source, EvaluateSettings(suite=(name,), **settings), reference)


def by_hand(candidate, source):
    """Every image as the classifier sees it, uint8, and its label."""
    from nst_data.images import decode

    pixels = [torch.from_numpy(np.array(decode(source.read(row)))).permute(2, 0, 1) for row in range(len(source))]
    return torch.stack([candidate.classifier.preprocessing.prepare(one) for one in pixels]), torch.from_numpy(source.labels)


@torch.no_grad()
def right(candidate, images, labels):
    return (PixelClassifier.wrap(candidate.classifier.network, candidate.classifier.preprocessing)(images).argmax(dim=1) == labels).numpy()


def test_the_four_extra_corruptions_are_a_suite_of_their_own_without_mce(source):
    candidate = candidate_of(0)
    extra = suite("extra-corruptions", source, candidate, seed=5)
    found = extra.measure(candidate, SuiteRunner()).result
    images, labels = by_hand(candidate, source)
    assert tuple(found["error"]) == EXTRA_CORRUPTIONS
    assert not {"mce", "ce", "relative_to"} & set(found)
    name = EXTRA_CORRUPTIONS[0]
    shown = [corrupt(image.permute(1, 2, 0).numpy(), name, 5, image_seed(5, row)) for row, image in enumerate(images)]
    assert found["error"][name][4] == pytest.approx(
        1 - right(candidate, torch.tensor(np.stack(shown)).permute(0, 3, 1, 2) / 255, labels).mean()
    )
    assert found["mean_error"] == pytest.approx(np.mean(list(found["error"].values())))
    assert extra.identity != suite("corruptions", source, seed=5).identity


def test_errors_under_corruptions_are_those_of_each_image_corrupted_by_itself(source):
    candidate = candidate_of(0)
    found = suite("corruptions", source, seed=5).measure(candidate, SuiteRunner()).result
    images, labels = by_hand(candidate, source)
    for name, severity in (("gaussian_noise", 3), ("fog", 1), ("jpeg_compression", 5)):
        changed = [corrupt(image.permute(1, 2, 0).numpy(), name, severity, image_seed(5, row)) for row, image in enumerate(images)]
        shown = torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).float() / 255
        assert found["error"][name][severity - 1] == pytest.approx(1 - right(candidate, shown, labels).mean())
    assert list(found["error"]) == list(CORRUPTIONS)
    assert found["mean_error"] == pytest.approx(np.mean(list(found["error"].values())))
    assert (found["images"], found["errors"]) == (IMAGES, 0)
    assert "ce" not in found


def test_a_model_relative_to_itself_is_at_100(source):
    candidate = candidate_of(0)
    relative = suite("corruptions", source, candidate).measure(candidate, SuiteRunner()).result
    assert relative["ce"] == dict.fromkeys(CORRUPTIONS, pytest.approx(1.0))
    assert relative["mce"] == pytest.approx(1.0)
    assert relative["relative_to"] == "net 0"


def test_errors_are_absolute_where_the_reference_makes_none(source):
    candidate = candidate_of(0)
    perfect = Candidate("perfect", Classifier(Constant(), candidate.classifier.preprocessing, NAMES), "perfect")
    source.labels[:] = 0
    found = suite("corruptions", source, perfect).measure(candidate, SuiteRunner()).result
    assert "mce" not in found
    assert "relative_to" not in found
    assert found["mce_missing"].startswith("perfect makes no error under gaussian_noise, shot_noise")


def test_each_image_is_read_once_for_its_75_copies(source, monkeypatch):
    read = []
    files = type(source).rows

    def counted(self, wanted):
        for row in files(self, wanted):
            read.append(row.id)
            yield row

    monkeypatch.setattr(type(source), "rows", counted)
    suite("corruptions", source).measure(candidate_of(0), SuiteRunner())
    assert sorted(read) == list(range(IMAGES))


def test_accuracy_under_attack_is_that_of_the_attacks_by_hand(source):
    candidate, levels = candidate_of(1), (2 / 255, 8 / 255)
    images, labels = by_hand(candidate, source)
    network = PixelClassifier.wrap(candidate.classifier.network, candidate.classifier.preprocessing)
    fast = suite("fgsm", source, epsilon=levels).measure(candidate, SuiteRunner()).result
    slow = suite("pgd", source, epsilon=levels, steps=3, step_size=1 / 255).measure(candidate, SuiteRunner()).result
    assert [point["epsilon"] for point in fast["by_epsilon"]] == [0, *levels]
    assert fast["by_epsilon"][0]["top1"] == right(candidate, images.float() / 255, labels).mean()
    for place, epsilon in enumerate(levels, start=1):
        attacked = fgsm(network, images.float() / 255, labels, epsilon)
        assert fast["by_epsilon"][place]["top1"] == right(candidate, attacked, labels).mean()
        attacked = pgd(network, images.float() / 255, labels, epsilon, 3, 1 / 255)
        assert slow["by_epsilon"][place]["top1"] == right(candidate, attacked, labels).mean()
    assert fast["top1"] == fast["by_epsilon"][-1]["top1"]


def test_random_starts_follow_from_seed_and_image(source):
    candidate = candidate_of(0)
    attack = suite("pgd", source, epsilon=(8 / 255,), steps=1, random_start=True, seed=3)._condition(8 / 255)
    images, labels = by_hand(candidate, source)
    network = PixelClassifier.wrap(candidate.classifier.network, candidate.classifier.preprocessing)
    whole = attack.attack(network, images.float() / 255, labels, range(IMAGES))
    alone = attack.attack(network, images[4:5].float() / 255, labels[4:5], [4])
    torch.testing.assert_close(whole[4:5], alone)
    assert (whole - images.float() / 255).abs().max() <= 8 / 255 + 1e-6


def test_every_image_and_every_seed_has_noise_of_its_own():
    seeds = {image_seed(seed, row) for seed in range(20) for row in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_unreadable_image_counts_in_no_condition(source, folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "bee" / "0.png").write_text("no image")
    damaged = open_source(str(tmp_path / "copy"), labeled=True)
    found = suite("fgsm", damaged, epsilon=(1 / 255,)).measure(candidate_of(0), SuiteRunner())
    whole = suite("fgsm", source, epsilon=(1 / 255,)).measure(candidate_of(0), SuiteRunner())
    assert (found.result["images"], found.result["errors"]) == (IMAGES, 1)
    there = [row for row in range(len(damaged)) if damaged.key(row) != "bee/0.png"]
    for metric, values in found.by_image.items():
        assert np.isnan(values).sum() == 1
        assert values[there].tolist() == whole.by_image[metric].tolist()


def test_images_that_none_can_be_read_of_are_refused(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_text("no image")
    broken = open_source(str(tmp_path), labeled=True)
    for name in ("clean", "fgsm"):
        with pytest.raises(NstError, match=r"none of its 1 images.*'[^']+': not an.*restore"):
            suite(name, broken).measure(candidate_of(0), SuiteRunner())


def test_an_image_processor_of_transformers_is_shown_the_same_pictures(tmp_path):
    for index in range(3):
        (tmp_path / NAMES[index]).mkdir()
        picture(index, index, 32).save(tmp_path / NAMES[index] / "0.png")
    source, timms = open_source(str(tmp_path), labeled=True), candidate_of(0)
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.2]
    processor = ViTImageProcessor(image_mean=mean, image_std=std, size={"height": 32, "width": 32})
    preprocessing = ProcessorPreprocessing("tiny", processor)
    theirs = Candidate("theirs", Classifier(timms.classifier.network, preprocessing, NAMES), "theirs")
    conditions = [Corrupted("shot_noise", 2, 0), FastGradientSign(2 / 255)]
    one, other = (observe(candidate, Trial.from_source("trial", source, candidate.classifier), conditions) for candidate in (timms, theirs))
    assert one["nll"] == pytest.approx(other["nll"], abs=1e-4)
    uncropped = [
        observe(candidate, replace(Trial.from_source("trial", source, candidate.classifier), uncropped=True))
        for candidate in (timms, theirs)
    ]
    assert uncropped[0]["nll"] == pytest.approx(uncropped[1]["nll"], abs=1e-4)


def test_images_below_32_pixels_cannot_be_corrupted(source):
    small = candidate_of(0)
    preprocessing = TimmPreprocessing((3, 16, 16), "bicubic", (0.5,) * 3, (0.5,) * 3, 1.0, None, exact=True)
    small = Candidate("small", Classifier(small.classifier.network, preprocessing, NAMES), "small")
    with pytest.raises(NstError, match=r"32 px.*found 16x16; enlarge it"):
        suite("corruptions", source).measure(small, SuiteRunner())


CONDITIONS = [Corrupted("gaussian_noise", 3, 0), Corrupted("fog", 2, 0)]


def test_the_numbers_do_not_depend_on_threads_or_on_where_the_work_was_cut(source, tmp_path, monkeypatch):
    trial = Trial.from_source("trial", source, candidate_of(0).classifier)
    whole = observe(candidate_of(0), trial, CONDITIONS, run=ReadSettings(decode_threads=1))
    monkeypatch.setattr("nst_train.classifiers.inference._CPU_BATCH_PIXELS", 2 * 32 * 32)  # batches of two images
    cut = observe(candidate_of(0), trial, CONDITIONS, run=ReadSettings(decode_threads=1))
    monkeypatch.setattr("nst_train.evaluation.trials._FORWARD_PASSES", 1)
    kept = observe(candidate_of(0), trial, CONDITIONS, tmp_path, ReadSettings(decode_threads=3))
    assert len(list(tmp_path.rglob("*.npy"))) == 4
    assert kept.tolist() == cut.tolist()
    assert kept["predicted"].tolist() == whole["predicted"].tolist()
    assert kept["nll"] == pytest.approx(whole["nll"], abs=1e-5)


class StoppedError(Exception):
    """In place of a kill."""


def test_what_was_stopped_goes_on_from_what_is_kept(source, tmp_path, monkeypatch):
    candidate, trial = candidate_of(0), Trial.from_source("trial", source, candidate_of(0).classifier)
    monkeypatch.setattr("nst_train.classifiers.inference._CPU_BATCH_PIXELS", 2 * 32 * 32)
    monkeypatch.setattr("nst_train.evaluation.trials._FORWARD_PASSES", 1)
    never = observe(candidate, trial, CONDITIONS, tmp_path / "never")
    files, asked = type(source).rows, []

    def rows(self, wanted):
        for row in files(self, wanted):
            asked.append(row.id)
            if len(asked) > 4:
                raise StoppedError
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(type(source), "rows", rows)
        with pytest.raises(StoppedError):
            observe(candidate, trial, CONDITIONS, tmp_path / "stopped")
        assert len(list((tmp_path / "stopped").rglob("*.npy"))) == 2
        asked[:] = [-100, -100, -100, -100]  # what is asked for now
        patched.setattr(type(source), "rows", lambda self, wanted: asked.extend(wanted) or files(self, wanted))
        again = observe(candidate, trial, CONDITIONS, tmp_path / "stopped")
    assert asked[4:] == [4, 5, 6]
    assert again.tolist() == never.tolist()


def test_chunks_that_follow_each_other_are_read_in_one_pass(source, tmp_path, monkeypatch):
    candidate, trial = candidate_of(0), Trial.from_source("trial", source, candidate_of(0).classifier)
    monkeypatch.setattr("nst_train.classifiers.inference._CPU_BATCH_PIXELS", 2 * 32 * 32)
    monkeypatch.setattr("nst_train.evaluation.trials._FORWARD_PASSES", 1)
    files, passes = type(source).rows, []
    monkeypatch.setattr(type(source), "rows", lambda self, wanted: passes.append(wanted.start) or files(self, wanted))
    whole = observe(candidate, trial, CONDITIONS, tmp_path)
    assert passes == [0]
    for first in (0, 4, 6):
        next(tmp_path.rglob(f"{first:010d}-*.npy")).unlink()
    assert observe(candidate, trial, CONDITIONS, tmp_path).tolist() == whole.tolist()
    assert passes == [0, 0, 4]


def test_another_model_seed_or_set_of_images_is_other_work(source, tmp_path):
    trial = Trial.from_source("trial", source, candidate_of(0).classifier)
    for candidate, conditions in (
        (candidate_of(0), CONDITIONS),
        (candidate_of(1), CONDITIONS),
        (candidate_of(0), [Corrupted("fog", 2, 0)]),
        (candidate_of(0), [Corrupted("fog", 2, 1)]),
        (candidate_of(0), []),
    ):
        observe(candidate, trial, conditions, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    about = [json.loads(path.read_text()) for path in Path(tmp_path).glob("*/about.json")]
    assert {one["model"] for one in about} == {"net 0", "net 1"}


def test_an_image_that_could_not_be_read_or_was_written_again_is_looked_at_again(folder, tmp_path):
    import os
    import shutil

    images, kept = tmp_path / "images", SuiteRunner(tmp_path / "kept")
    shutil.copytree(folder, images)
    image = images / NAMES[0] / "0.png"
    encoded, stamp = image.read_bytes(), image.stat().st_mtime_ns
    image.write_bytes(bytes(len(encoded)))
    os.utime(image, ns=(stamp, stamp))

    def measured():
        return suite("clean", open_source(str(images), labeled=True)).measure(candidate_of(0), kept).result

    assert measured()["errors"] == 1
    image.write_bytes(encoded)
    os.utime(image, ns=(stamp, stamp))
    whole = measured()
    assert (whole["images"], whole["errors"]) == (IMAGES, 0)
    image.write_bytes(bytes(len(encoded)))
    os.utime(image, ns=(stamp, stamp + 1))
    assert measured()["errors"] == 1


def test_attacks_get_smaller_batches_on_a_gpu_than_what_goes_forward_alone(monkeypatch):
    teacher = Teacher.from_members(candidate_of(0).classifier)
    monkeypatch.setattr("nst_train.classifiers.inference.this_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("nst_train.classifiers.inference._GPU_BATCH_PIXELS", 128 * 32 * 32)
    sizes = [choose_computation(teacher, None, "fp32", False, backward).batch_size for backward in (False, True)]
    assert sizes == [128, 8]


def test_memory_that_does_not_suffice_is_one_line(source, monkeypatch):
    def attacked(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("nst_train.evaluation.conditions.fgsm", attacked)
    with pytest.raises(NstError, match=r"fgsm on net 0: 8 images.*cpu.*CUDA_VISIBLE_DEVICES= "):
        suite("fgsm", source).measure(candidate_of(0), SuiteRunner())


def test_a_damaged_file_of_outcomes_is_named(source, tmp_path):
    trial = Trial.from_source("trial", source, candidate_of(0).classifier)
    observe(candidate_of(0), trial, [], tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(NstError, match=r"npy:.*outcomes of 7 images, found.*; delete it"):
        observe(candidate_of(0), trial, [], tmp_path)


def test_without_opencv_corruptions_say_what_to_install_and_the_rest_is_measured(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in ("corruptions", "extra-corruptions"):
        with pytest.raises(UsageError, match=r"OpenCV.*not installed: pip install 'nst\[robustness\]'"):
            suite(name, source)
    assert suite("clean", source).measure(candidate_of(0), SuiteRunner()).result["images"] == IMAGES
