"""Finetuning with the shallow layers fixed (section 3.1, fix-res): the first blocks of a network stay in evaluation mode."""

from collections.abc import Iterator

from torch import nn

from nst_train.settings import TrainSettings

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ROUNDING = 1e-9  # in floats, 0.29 x 100 is below 29


def freeze(network: nn.Module, settings: TrainSettings) -> None:
    """Freeze the first blocks of a network in training: fixed weights and batch-norm statistics, no stochastic depth or dropout.

    `settings.freeze` is the share of its blocks, rounded down. Everything before them, such as the stem and a ViT's tokens, is frozen too;
    anything after the last block never is (released code: `fix_layer_num`). A network without blocks is frozen layer by layer.
    """
    if not settings.freeze:
        return
    if settings.freeze_by == "layers":
        _freeze_layers(network, settings.freeze)
        return
    parts = list(_parts(network))
    blocks = [number for number, (_, is_block) in enumerate(parts) if is_block]
    blocks = blocks or [number for number, (part, _) in enumerate(parts) if _has_weights(part)]
    frozen = int(settings.freeze * len(blocks) + _ROUNDING)
    first_trained = blocks[frozen - 1] + 1 if frozen else blocks[0]
    for part, _ in parts[:first_trained]:
        part.eval()
    trained = {weight for part, _ in parts[first_trained:] for weight in part.parameters()}
    for weight in network.parameters():
        if weight not in trained:
            weight.requires_grad = False


def _parts(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the indivisible parts of a network in order, and whether each is a block: an item of a list, made up of layers.

    Lists, stages and modules that contain lists are entered; a block is not, whatever it contains. For timm networks the blocks are those
    by which timm itself groups weights (`group_matcher`), unless it stops at stages.
    """
    is_list = _is_list(module)
    for child in module.children():
        if _is_list(child) or (not is_list and any(type(inner) in _CONTAINERS for inner in child.modules())):
            yield from _parts(child)
        else:
            yield child, is_list and any(map(_has_weights, child.children()))


def _is_list(module: nn.Module) -> bool:
    return type(module) in _CONTAINERS or "Stage" in type(module).__name__


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _freeze_layers(network: nn.Module, share: float) -> None:
    """Freeze single layers with weights, wherever in a block they are, as earlier versions of nst did; containers stay in training."""
    layers = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    for layer in layers[: int(share * len(layers))]:
        layer.training = False  # only this layer: `eval` would include those inside it, in a ViT all of them
        for weight in layer.parameters(recurse=False):
            weight.requires_grad = False
