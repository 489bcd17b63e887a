"""OpenCLIP's models as zero-shot teachers."""

import json
import warnings

import numpy as np
import open_clip
import pytest
import torch
from conftest import write_pool
from image_text import tokenizer, write_clip
from labels import RUN, SETTINGS, table_rows
from PIL import Image
from safetensors.torch import load_file, save_file

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train import ZeroShot, label
from nst_train.classifiers import zero_shot
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks import open_clip_models

SIDE = {"width": 16, "layers": 2}
MODEL = {
    "embed_dim": 12,
    "vision_cfg": {**SIDE, "image_size": 24, "patch_size": 8, "head_width": 8},
    "text_cfg": {**SIDE, "context_length": 77, "vocab_size": 49408, "heads": 2},
}
IMAGES = {"mean": [0.2, 0.5, 0.7], "std": [0.3, 0.2, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}
NAMES = ["ant", "Kaffee-Bär mit Öl", "t-shirt"]


def write_open_clip(folder, images=None, **model):
    """A model of OpenCLIP with random weights, as its `push_to_hf_hub` writes it; its name for `--teacher`."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    network = open_clip.CLIP(**MODEL)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.mul_(2)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "open_clip_model.safetensors")
    content = {"model_cfg": MODEL | model, "preprocess_cfg": IMAGES | (images or {})}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_open_clip(tmp_path_factory.mktemp("models") / "openclip")


def own_answer(teacher, image, texts):
    """The softmax of the model's own logits, by OpenCLIP alone, shape (texts,)."""
    network, _, prepare = open_clip.create_model_and_transforms(teacher)
    tokens = open_clip.get_tokenizer(teacher)(texts)
    with torch.no_grad():
        return network.eval().get_logits(prepare(image)[None], tokens)[0].softmax(dim=1)[0].numpy()


def photograph(size=(70, 50)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_probabilities_are_the_softmax_of_the_models_own_logits(mode, tmp_path):
    teacher = write_open_clip(tmp_path / "model", {"resize_mode": mode})
    classifier, entry = load_classifier(ZeroShot(model=teacher, class_names=NAMES, prompts=["a {}"]), Store(tmp_path), exact=True)
    pixels = torch.from_numpy(np.array(photograph())).permute(2, 0, 1)
    with torch.no_grad():
        ours = classifier.network(classifier.preprocessing.finish(classifier.preprocessing.prepare(pixels)[None])).softmax(dim=1)[0]
    theirs = own_answer(teacher, photograph(), [f"a {name}" for name in NAMES])
    assert ours.numpy() == pytest.approx(theirs, abs=1e-5)
    assert theirs.std() > 0.01
    assert entry.texts.synonyms == {name: [name] for name in NAMES}


def test_class_weights_of_several_prompts_are_those_that_openclip_builds(teacher, tmp_path):
    prompts = ["a {}", "{} up close", "the {}!"]
    classifier, _ = load_classifier(ZeroShot(model=teacher, class_names=NAMES, prompts=prompts), Store(tmp_path))
    network, tokenizer = open_clip.create_model(teacher).eval(), open_clip.get_tokenizer(teacher)
    theirs = open_clip.build_zero_shot_classifier(network, tokenizer, NAMES, prompts) * network.logit_scale.exp()
    assert torch.allclose(classifier.network.head.weight, theirs.T, atol=1e-4)


@pytest.mark.slow
def test_a_pool_is_labeled_and_its_text_side_left_behind(teacher, tmp_path):
    pool, store = write_pool(tmp_path / "pool", 2, 3), Store(tmp_path / "store")
    spec = ZeroShot(model=teacher, class_names=NAMES)
    version = label(store, "bugs", spec, open_source(str(pool)), SETTINGS, run=RUN)
    assert len(table_rows(version)) == 6
    assert load_classifier(spec, store)[0].parameters < 100_000 < open_clip.CLIP(**MODEL).token_embedding.weight.numel()
    assert label(store, "bugs", spec, open_source(str(pool)), SETTINGS, run=RUN).ref == version.ref


def load(teacher, folder, **words):
    return load_classifier(ZeroShot(model=teacher, **{"class_names": NAMES} | words), Store(folder))


def test_only_safetensors_are_read(tmp_path):
    teacher = write_open_clip(tmp_path / "model")
    torch.save(load_file(tmp_path / "model" / "open_clip_model.safetensors"), tmp_path / "model" / "open_clip_pytorch_model.bin")
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    with pytest.raises(NstError, match=r"open_clip_config\.json.*safetensors, found none; pickle.*not supported"):
        load(teacher, tmp_path)


@pytest.mark.parametrize(
    ("model", "images", "says"),
    [
        (
            {"text_cfg": {**MODEL["text_cfg"], "width": 10**7}},
            {},
            r"text_cfg\.width:.*its \d+ tensors.*found 10000000",
        ),
        ({"vision_cfg": {**MODEL["vision_cfg"], "layers": 10**6}}, {}, r"vision_cfg\.layers: expected numbers that its \d+ tensors"),
        ({"text_cfg": {**MODEL["text_cfg"], "hf_model_name": "owner/bert"}}, {}, r"hf_model_name refers to another model"),
        (
            {"vision_cfg": {"timm_model_name": "hf-hub:owner/net"}},
            {},
            r"timm_model_name:.*timm, found 'hf-hub:owner/net'",
        ),
        ({"text_cfg": None}, {}, r"expected model_cfg with text_cfg and vision_cfg"),
        ({"embed_dim": 24}, {}, r"image-text model.*trained weights.*failed \(wrong shape"),
        ({}, {"resize_mode": "longest"}, r"resize_mode: expected shortest or squash, found 'longest'"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(tmp_path, model, images, says):
    teacher = write_open_clip(tmp_path / "model", images, **model)
    with pytest.raises(NstError, match=says) as error:
        load(teacher, tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(teacher)


def test_a_text_that_is_too_long_is_refused(teacher, tmp_path):
    with pytest.raises(UsageError, match=r"102 tokens.*77; shorten.*name or the prompt"):
        load(teacher, tmp_path, class_names=["a " * 100, "b"], prompts=["{}"])


def test_without_the_package_what_to_install_is_said(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(open_clip_models, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"open-clip-torch: pip install 'nst\[openclip\]'"):
        load(teacher, tmp_path)


def test_where_a_model_is_there_in_both_formats_transformers_is_read(tmp_path):
    write_open_clip(tmp_path / "model")
    teacher = write_clip(tmp_path / "model")
    assert zero_shot._is_transformers_folder(teacher, tmp_path / "model")
    assert load(teacher, tmp_path)[0].network.images.network.config.model_type == "clip"


def test_openclip_says_nothing_on_the_screen(teacher, tmp_path, capfd, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(teacher, tmp_path)
    assert (capfd.readouterr(), caplog.text) == (("", ""), "")


def test_a_config_that_names_code_for_its_tokenizer_runs_none(tmp_path):
    text = MODEL["text_cfg"] | {"hf_tokenizer_name": "x"}
    ran = tmp_path / "ran"
    for number, options in enumerate(({"trust_remote_code": True}, {})):
        folder = tmp_path / f"model-{number}"
        name = write_open_clip(folder, text_cfg=text | {"tokenizer_kwargs": options})
        tokenizer().save_pretrained(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config |= {"auto_map": {"AutoTokenizer": [None, "own.Own"]}, "tokenizer_class": "Own"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Own\n")
        with pytest.raises(
            NstError, match="tokenizer_kwargs:.*clean, language, strip_sep_token, found" if options else "contains custom code"
        ):
            load_classifier(ZeroShot(model=name, class_names=NAMES), Store(tmp_path / "store"))
        assert not ran.exists()
