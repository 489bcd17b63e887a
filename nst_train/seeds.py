"""Seeds: every random choice is a function of a seed in the settings and of its purpose."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 32-bit seed that depends on every part."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def seed_transforms(seed: int) -> None:
    """Seed the three generators that timm's and torchvision's transforms draw from.

    `torch.manual_seed` would format a stack trace on every call, for deferred seeding of CUDA; transforms only need the CPU generator.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def seed_network(seed: int) -> None:
    """Seed what initial weights, dropout and stochastic depth draw from, on every device."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # avoids the stack trace that `torch.manual_seed` formats for deferred seeding of CUDA
