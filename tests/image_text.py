"""Tiny CLIP and SigLIP models with random weights and a tokenizer of their own; nothing is downloaded."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessor,
    SiglipModel,
)

SIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIDE, "image_size": 24, "patch_size": 8}


def tokenizer(max_length=77):
    """Letters to numbers: spaces, umlauts and punctuation each have one."""
    special = ["<pad>", "<start>", "<unk>", "<end>"]
    letters = [chr(one) for one in range(32, 127)] + list("äöüßéñ")
    made = Tokenizer(models.WordLevel({one: number for number, one in enumerate([*special, *letters])}, unk_token="<unk>"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)])
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=max_length, **names)


def spread_weights(network):
    """Features of random weights lie close together; these do not."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return network


def write_clip(folder, seed=0, **processing):
    """A CLIP model; its name for `--teacher`."""
    torch.manual_seed(seed)
    words = {"vocab_size": 110, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    config = CLIPConfig(text_config={**SIDE, **words}, vision_config=VISION, projection_dim=12)
    spread_weights(CLIPModel(config)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    side = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPImageProcessor(**side | processing).save_pretrained(folder)
    return f"local-dir:{folder}"


def write_siglip(folder, seed=0):
    """A SigLIP model; its name for `--teacher`."""
    torch.manual_seed(seed)
    words = {"vocab_size": 110, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    config = SiglipConfig(text_config={**SIDE, **words, "projection_size": 16}, vision_config=VISION)
    network = spread_weights(SiglipModel(config))
    with torch.no_grad():
        network.logit_scale.fill_(2.5)
        network.logit_bias.fill_(-10.0)
    network.save_pretrained(folder)
    tokenizer(64).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return f"local-dir:{folder}"


def write_siglip_classifier(folder, names, **words):
    """A classifier made of SigLIP's image side; its config.json describes a text side too, by default the published one. Its name."""
    torch.manual_seed(0)
    about = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = SiglipConfig(text_config=words, vision_config=VISION, **about)
    spread_weights(SiglipForImageClassification(config)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return f"local-dir:{folder}"


def write_naflex(folder):
    """A SigLIP 2 model that takes images of any shape as patches; its name for `--teacher`."""
    torch.manual_seed(0)
    words = {"vocab_size": 110, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}
    config = Siglip2Config(text_config={**SIDE, **words, "projection_size": 16}, vision_config={**SIDE, "num_patches": 16, "patch_size": 8})
    spread_weights(Siglip2Model(config)).save_pretrained(folder)
    tokenizer(64).save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)
    return f"local-dir:{folder}"
