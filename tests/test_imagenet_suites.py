"""ImageNet-A, -R, -C and -P: hand-worked tables, class subsets, folders that are not as published."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import picture
from nst_cli.evaluation_tables import print_results
from PIL import Image
from timm.data import ImageNetInfo
from wording import mentions

from nst_data.cards.card_metadata import scores
from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.sources.imagenet_names import imagenet_wnids
from nst_data.store.manifest import json_digest
from nst_data.store.metrics import Metrics
from nst_train.classifiers.classifier import Classifier
from nst_train.evaluation.accuracy import Accuracy
from nst_train.evaluation.corrupted import corruption_metrics
from nst_train.evaluation.corruptions import CORRUPTIONS
from nst_train.evaluation.imagenet_classes import output_columns, subset_wnids
from nst_train.evaluation.imagenet_suites import (
    ALEXNET_ERROR,
    ALEXNET_FLIPS,
    corruption_errors,
    create_trial,
    flip_probabilities,
    mean_of,
    suite_wnids,
)
from nst_train.evaluation.measuring import SuiteRunner
from nst_train.evaluation.sequences import Sequences
from nst_train.evaluation.suites import open_suite
from nst_train.evaluation.trials import Candidate, observe, renormalize
from nst_train.evaluation_settings import EvaluateSettings
from nst_train.transforms.preprocessing import TimmPreprocessing

WNIDS = imagenet_wnids()
PARTIAL = {"partial": True}


@pytest.fixture(scope="module")
def candidate():
    """An untrained network of ImageNet's classes for 32 pixels, whose own transform would cut a border off."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=1000).eval()
    preprocessing = TimmPreprocessing((3, 32, 32), "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.5, "center", exact=True)
    return Candidate("tiny", Classifier(network, preprocessing, WNIDS), "tiny")


def write_classes(folder, wnids, images=1, size_px=32):
    for label, wnid in enumerate(wnids):
        (folder / wnid).mkdir(parents=True)
        for index in range(images):
            picture(label % 4, 10 * label + index, size_px).save(folder / wnid / f"{index}.png")
    return folder


def suite(name, folder, **settings):
    return open_suite(name, folder, EvaluateSettings(suite=(name,), **settings))


def test_alexnets_own_errors_give_exactly_100():
    errors = {name: [error] * 5 for name, error in ALEXNET_ERROR.items()}
    assert list(corruption_errors(errors, ALEXNET_ERROR).values()) == [1.0] * 15
    assert mean_of(corruption_errors(errors, ALEXNET_ERROR)) == 1.0
    assert mean_of({name: share / ALEXNET_FLIPS[name] for name, share in ALEXNET_FLIPS.items()}) == 1.0


def test_a_reordered_mapping_gives_the_same():
    errors = {name: [0.1 * place, 0.2, 0.3, 0.4, 0.5] for place, name in enumerate(ALEXNET_ERROR)}
    backwards = dict(reversed(errors.items()))
    assert corruption_errors(errors, ALEXNET_ERROR) == corruption_errors(backwards, dict(sorted(ALEXNET_ERROR.items())))


def test_mean_corruption_error_by_hand():
    half = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "snow": [0.5, 0.5, 0.5, 0.5, 0.5]}
    reference = {"snow": 0.25, "fog": 0.6}
    assert corruption_errors(half, reference) == pytest.approx({"fog": 0.5, "snow": 2.0})
    assert mean_of(corruption_errors(half, reference)) == pytest.approx(1.25)


def test_alexnets_numbers_are_of_the_fifteen_and_the_ten():
    assert tuple(ALEXNET_ERROR) == CORRUPTIONS
    assert len(ALEXNET_FLIPS) == 10


def test_each_image_has_its_share_of_the_mean_corruption_error():
    draw = np.random.default_rng(0)
    right = {name: [(draw.random(20) < 0.5).astype(float) for _ in range(5)] for name in ALEXNET_ERROR}
    found = corruption_metrics(right, ALEXNET_ERROR, "AlexNet")
    assert found.by_image["mce"].mean() == pytest.approx(found.result["mce"])
    assert found.by_image["mean_error"].mean() == pytest.approx(found.result["mean_error"])
    assert found.result["top1"] == pytest.approx(1 - found.result["mean_error"])


def test_flips_are_counted_from_frame_to_frame_but_for_noise_from_the_first():
    there_and_back = np.array([[7, 8, 7, 8, 7]])
    assert flip_probabilities(there_and_back, is_noise=False).tolist() == [1.0]
    assert flip_probabilities(there_and_back, is_noise=True).tolist() == [0.5]
    once_for_all = np.array([[7, 8, 8, 8, 8], [7, 7, 7, 7, 7]])
    assert flip_probabilities(once_for_all, is_noise=False).tolist() == [0.25, 0.0]
    assert flip_probabilities(once_for_all, is_noise=True).tolist() == [1.0, 0.0]


def test_classes_are_taken_before_the_arg_max():
    logits = torch.tensor([[1.0, 5.0, 2.0, 3.0]])  # class 1 is no class of the suite
    columns = np.array([0, 2, 3])
    assert renormalize(logits.log_softmax(dim=1), columns).argmax(dim=1).tolist() == [2]  # class 3, not wrong for having said 1
    assert renormalize(logits.log_softmax(dim=1), columns).exp().sum().item() == pytest.approx(1)
    alone = logits[:, [0, 2, 3]].log_softmax(dim=1)
    torch.testing.assert_close(renormalize(logits.log_softmax(dim=1), columns), alone)


def test_the_200_classes_are_the_authors():
    of_a, of_r = subset_wnids("imagenet_a"), subset_wnids("imagenet_r")
    assert (len(set(of_a)), len(set(of_r))) == (200, 200)
    assert (of_a[0], of_r[0]) == (WNIDS[6], WNIDS[1])
    assert suite_wnids("imagenet-c") == WNIDS


def test_imagenet_a_is_scored_among_its_200_classes(tmp_path, candidate):
    wnids = suite_wnids("imagenet-a")
    opened = suite("imagenet-a", write_classes(tmp_path / "a", wnids))
    found = opened.measure(candidate, SuiteRunner())
    network, preprocessing = candidate.classifier.network, candidate.classifier.preprocessing
    images = [np.array(Image.open(tmp_path / "a" / wnid / "0.png")) for wnid in sorted(wnids)]
    prepared = torch.stack([preprocessing.prepare(torch.from_numpy(image).permute(2, 0, 1)) for image in images])
    with torch.no_grad():
        logits = network(preprocessing.finish(prepared))[:, [WNIDS.index(wnid) for wnid in wnids]]
    labels = torch.tensor([wnids.index(wnid) for wnid in sorted(wnids)])
    assert found.result["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found.result["top1"] == int((logits.argmax(dim=1) == labels).sum()) / 200
    assert found.result["images"] == 200
    assert opened.identity != Accuracy("clean", opened.source).identity


def test_imagenet_c_is_shown_whole_and_relative_to_alexnet(tmp_path, candidate):
    folder = tmp_path / "c"
    kinds = WNIDS[:3]
    for place, name in enumerate(("shot_noise", "fog", "snow")):
        group = folder if place % 2 else folder / "group"  # the archives are unpacked in either way
        for severity in range(1, 6):
            write_classes(group / name / str(severity), kinds, images=2)
    found = suite("imagenet-c", folder, **PARTIAL).measure(candidate, SuiteRunner())
    preprocessing, rows = candidate.classifier.preprocessing, []
    for label, wnid in enumerate(kinds):
        for index in range(2):
            image = torch.from_numpy(np.array(Image.open(folder / "fog" / "1" / wnid / f"{index}.png"))).permute(2, 0, 1)
            with torch.no_grad():
                rows.append(int(candidate.classifier.network(preprocessing.finish(image[None])).argmax()) != label)
    assert found.result["error"]["shot_noise"] == [np.mean(rows)] * 5
    assert found.result["ce"]["fog"] == pytest.approx(np.mean(rows) / ALEXNET_ERROR["fog"])
    assert found.result["relative_to"] == "AlexNet"
    assert found.by_image["mce"].shape == (6,)


def test_images_that_are_cut_already_are_not_cropped_again(tmp_path, candidate):
    folder = write_classes(tmp_path / "fog" / "1", WNIDS[:3])
    trial = create_trial("imagenet-c", "fog 1", open_source(str(folder), labeled=True), candidate.classifier)
    images = torch.stack([torch.from_numpy(np.array(Image.open(folder / wnid / "0.png"))).permute(2, 0, 1) for wnid in WNIDS[:3]])
    with torch.no_grad():
        logits = candidate.classifier.network(candidate.classifier.preprocessing.finish(images))
    costs = torch.nn.functional.cross_entropy(logits, torch.arange(3), reduction="none")
    assert observe(candidate, trial)["nll"][0] == pytest.approx(costs.numpy(), rel=1e-4)
    assert observe(candidate, replace(trial, uncropped=False))["nll"][0] != pytest.approx(costs.numpy(), rel=1e-3)


def test_what_is_missing_of_imagenet_c_is_named_and_the_rest_measured_where_asked_for(tmp_path, candidate, capsys):
    for name in CORRUPTIONS[:3]:
        for severity in range(1, 6):
            write_classes(tmp_path / name / str(severity), WNIDS[:2])
    shutil.rmtree(tmp_path / "shot_noise" / "4")
    with pytest.raises(NstError, match=r"15 corruptions.*1 to 5, missing: shot_noise/4, defocus_blur/1"):
        suite("imagenet-c", tmp_path)
    found = suite("imagenet-c", tmp_path, **PARTIAL).measure(candidate, SuiteRunner())
    assert list(found.result["ce"]) == ["gaussian_noise", "impulse_noise"]
    assert found.result["partial"]["missing"] == ["shot_noise", *CORRUPTIONS[3:]]
    assert len(found.result["partial"]["missing_classes"]) == 998
    assert scores(Metrics({"imagenet-c": found.result})) == {}
    print_results({"imagenet-c": {"tiny": found.result}})
    shown = " ".join(capsys.readouterr().out.split())
    assert mentions(shown, "partial, …; missing: shot_noise, defocus_blur, ")
    shutil.rmtree(tmp_path / "impulse_noise" / "2")
    (tmp_path / "impulse_noise" / "2").mkdir()  # as a broken unpacking leaves it
    with pytest.raises(NstError, match="missing: shot_noise/4, impulse_noise/2"):
        suite("imagenet-c", tmp_path)
    assert list(suite("imagenet-c", tmp_path, **PARTIAL).measure(candidate, SuiteRunner()).result["ce"]) == ["gaussian_noise"]
    with pytest.raises(NstError, match=r"10 perturbations, missing: motion_blur, zoom_blur, snow.*3 more\..*`partial`"):
        suite("imagenet-p", tmp_path)
    with pytest.raises(NstError, match="no such folder; expected imagenet-c as published"):
        suite("imagenet-c", tmp_path / "nowhere")


def test_a_folder_of_no_class_is_named_and_left_out_where_asked_for(tmp_path, candidate):
    write_classes(tmp_path / "r", [*suite_wnids("imagenet-r"), "zebra"])
    with pytest.raises(NstError, match=r"r:.*'zebra'.*imagenet-r's 200.*n01443537"):
        suite("imagenet-r", tmp_path / "r")
    found = suite("imagenet-r", tmp_path / "r", **PARTIAL).measure(candidate, SuiteRunner()).result
    assert (found["images"], found["partial"]) == (200, {"unknown_folders": ["zebra"]})
    write_classes(tmp_path / "none", ["zebra"])
    with pytest.raises(NstError, match="unknown class folder 'zebra'"):
        suite("imagenet-r", tmp_path / "none", **PARTIAL)


def test_a_model_that_lacks_some_classes_is_measured_on_the_others_where_asked_for(tmp_path, candidate):
    wnids = suite_wnids("imagenet-r")
    write_classes(tmp_path / "r", wnids, images=2)
    torch.manual_seed(1)
    known = [wnid for wnid in WNIDS if wnid != wnids[3]]
    fewer = Classifier(timm.create_model("test_resnet", num_classes=999).eval(), candidate.classifier.preprocessing, known)
    with pytest.raises(NstError, match=r"found 999.*without 1 of the 200"):
        suite("imagenet-r", tmp_path / "r").measure(Candidate("fewer", fewer, "fewer"), SuiteRunner())
    found = suite("imagenet-r", tmp_path / "r", **PARTIAL).measure(Candidate("fewer", fewer, "fewer"), SuiteRunner()).result
    assert (found["images"], found["partial"]) == (398, {"classes_the_model_lacks": [wnids[3]]})
    assert set(found["classes"]) == set(wnids) - {wnids[3]}


def test_a_whole_suite_is_not_marked_as_partial(tmp_path, candidate):
    write_classes(tmp_path / "r", suite_wnids("imagenet-r"))
    assert "partial" not in suite("imagenet-r", tmp_path / "r", **PARTIAL).measure(candidate, SuiteRunner()).result


def test_a_missing_class_is_named_and_left_out_where_asked_for(tmp_path, candidate):
    wnids = suite_wnids("imagenet-r")
    write_classes(tmp_path / "r", wnids[:-2])
    with pytest.raises(NstError, match=f"found 198; missing: {wnids[-2]}, {wnids[-1]}\\..*`partial`"):
        suite("imagenet-r", tmp_path / "r")
    assert suite("imagenet-r", tmp_path / "r", **PARTIAL).measure(candidate, SuiteRunner()).result["images"] == 198


def test_a_model_of_other_classes_is_refused(tmp_path, candidate):
    opened = suite("imagenet-r", write_classes(tmp_path / "r", suite_wnids("imagenet-r")[:2]), **PARTIAL)
    network = timm.create_model("test_resnet", num_classes=3)
    other = Candidate("other", Classifier(network, candidate.classifier.preprocessing, ["ant", "bee", "cat"]), "other")
    said = (
        r"expected a classifier of ImageNet's classes, by WordNet ids or ImageNet's names, found 3 \(ant, bee, cat\) without 200 of the 200"
    )
    with pytest.raises(NstError, match=said):
        opened.measure(other, SuiteRunner())


def test_classes_are_known_by_imagenets_names_too():
    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index) for index in range(1000)]
    names[134], names[517] = "crane (134)", "crane (517)"  # as they are told apart
    assert output_columns(names, [WNIDS[517], WNIDS[0]], "suite").tolist() == [517, 0]
    with pytest.raises(NstError, match="expected a classifier of ImageNet's classes"):
        output_columns(sorted(names), WNIDS, "suite")


def write_sequences(folder, frames):
    """Sequences of class WNIDS[0], each a list of labels whose pictures are its frames."""
    for number, labels in enumerate(frames):
        sequence = folder / WNIDS[0] / f"s{number}"
        sequence.mkdir(parents=True)
        for place, label in enumerate(labels):
            picture(label, 0, 32).save(sequence / f"{place + 1}.png")


def test_flip_rates_follow_from_what_each_frame_alone_is_taken_for(tmp_path, candidate):
    frames = [[0, 1, 2, 3], [0, 0, 3, 3]]
    for name in ALEXNET_FLIPS:
        write_sequences(tmp_path / "p" / name, frames)
    found = suite("imagenet-p", tmp_path / "p", **PARTIAL).measure(candidate, SuiteRunner())
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(np.array(picture(label, 0, 32))).permute(2, 0, 1) for label in range(4)])
        said = candidate.classifier.network(candidate.classifier.preprocessing.finish(images)).argmax(dim=1).numpy()
    steady = np.mean(flip_probabilities(said[np.array(frames)], is_noise=False))
    noise = np.mean(flip_probabilities(said[np.array(frames)], is_noise=True))
    assert found.result["flips"]["snow"] == steady
    assert found.result["flips"]["shot_noise"] == noise
    assert found.result["fr"]["tilt"] == pytest.approx(steady / ALEXNET_FLIPS["tilt"])
    assert found.result["mfr"] == pytest.approx(
        np.mean([(noise if "noise" in name else steady) / ALEXNET_FLIPS[name] for name in ALEXNET_FLIPS])
    )
    assert found.by_image["mfr"].mean() == pytest.approx(found.result["mfr"])
    assert (found.result["frames"]["snow"], found.result["sequences"]) == (4, 20)


def test_top1_of_imagenet_p_is_over_all_frames_of_which_translate_has_more(tmp_path, candidate):
    """Section A.5; there translate has 41 frames a sequence, the others 31."""
    with torch.no_grad():
        images = torch.from_numpy(np.array(picture(0, 0, 32))).permute(2, 0, 1)[None]
        said = int(candidate.classifier.network(candidate.classifier.preprocessing.finish(images)).argmax())
    for name in ALEXNET_FLIPS:
        write_sequences(tmp_path / name, [[0] * 9] if name == "translate" else [[0, 0]])
        if name == "translate":  # whose frames alone are taken for their class
            (tmp_path / name / WNIDS[0]).rename(tmp_path / name / WNIDS[said])
    opened = suite("imagenet-p", tmp_path, **PARTIAL)
    assert opened.measure(candidate, SuiteRunner()).result["top1"] == pytest.approx(9 / (9 + 9 * 2))
    as_before = json_digest([[place.name, place.severity, source.fingerprint] for place, source in opened.sources])
    assert opened.identity != as_before, "a record of the mean over perturbations would stand for it"


def test_frames_of_another_size_are_other_sequences_though_their_sum_is_the_same(tmp_path):
    for folder in ("one", "other"):
        write_sequences(tmp_path / folder, [[0, 1]])
    first, second = (tmp_path / "other" / WNIDS[0] / "s0" / name for name in ("1.png", "2.png"))
    first.write_bytes(first.read_bytes() + b"0")
    second.write_bytes(second.read_bytes()[:-1])
    assert Sequences(str(tmp_path / "one")).fingerprint != Sequences(str(tmp_path / "other")).fingerprint
    assert Sequences(str(tmp_path / "one")).stamp != Sequences(str(tmp_path / "other")).stamp


def test_a_sequence_that_cannot_be_read_is_left_out_where_asked_for(tmp_path, candidate, capsys):
    for name in ALEXNET_FLIPS:
        write_sequences(tmp_path / name, [[0, 1, 2]] * 4)
    (tmp_path / "snow" / WNIDS[0] / "s3" / "2.png").unlink()
    opened = suite("imagenet-p", tmp_path, **PARTIAL)
    found = opened.measure(candidate, SuiteRunner())
    assert (found.result["sequences"], found.result["errors"]) == (39, 1)
    print_results({"imagenet-p": {"tiny": found.result}})
    assert capsys.readouterr().out.startswith("imagenet-p, 39 sequences, 1 left out that cannot be read whole: flip rate")


def test_a_perturbation_without_one_whole_sequence_is_an_error(tmp_path, candidate):
    for name in ALEXNET_FLIPS:
        write_sequences(tmp_path / name, [[0, 1, 2]] * 2)
    for number in range(2):
        (tmp_path / "snow" / WNIDS[0] / f"s{number}" / "2.png").write_text("no image")
    with pytest.raises(NstError, match=r"snow: none of its 2 sequences.*unpack snow"):
        suite("imagenet-p", tmp_path, **PARTIAL).measure(candidate, SuiteRunner())
