"""Attention as PyTorch's fused kernel or step by step, for networks of timm and transformers."""

from torch import nn

from nst_data.errors import NstError
from nst_train.networks.transformers_networks import Logits


def has_fused_attention(network: nn.Module) -> bool:
    """Whether a network computes attention by `torch.nn.functional.scaled_dot_product_attention`, and can do without."""
    if isinstance(network, Logits):
        return bool(network.network.config._attn_implementation == "sdpa")
    return any(_is_fused(layer) for layer in network.modules())


def unfuse_attention(network: nn.Module, model: str) -> None:
    """Have a network compute attention step by step, as `TIMM_FUSED_ATTN=0` and `attn_implementation="eager"` do.

    The fused kernel for CPUs is several times slower in the backward pass in bf16. Raises NstError for a network without it.
    """
    if not has_fused_attention(network):
        raise NstError(f"`fused_attention`: {model} has no fused attention that could be switched off; remove it")
    if isinstance(network, Logits):
        network.network.set_attn_implementation("eager")
        return
    for layer in filter(_is_fused, network.modules()):
        layer.fused_attn = False  # type: ignore[assignment]


def _is_fused(layer: nn.Module) -> bool:
    return getattr(layer, "fused_attn", False) is True
