"""A seeded order of images: a pseudo-random number per `image_hash`, the same on every engine."""

import hashlib

import narwhals as nw
from narwhals.typing import LazyFrameT

from nst_data.tables.engines import with_hash_number

ORDER_SIZE = 2**31 - 1  # a prime, so that a*x + b modulo it is one-to-one; products with 28-bit numbers fit into an int64
HASH_DIGITS = 7


def with_seeded_order(rows: LazyFrameT, seed: int, purpose: str, name: str) -> LazyFrameT:
    """Add an int64 from 0 to ORDER_SIZE - 1 that looks random and depends only on `image_hash`, seed and purpose."""
    a, b = order_coefficients(seed, purpose)
    return with_hash_number(rows, name, HASH_DIGITS).with_columns(((nw.col(name) * a + b) % ORDER_SIZE).alias(name))


def order_coefficients(seed: int, purpose: str) -> tuple[int, int]:
    """The coefficients of the order a*x + b, where x is the number made of the first digits of `image_hash`."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    first, second = (1 + int.from_bytes(part, "big") % (ORDER_SIZE - 1) for part in (digest[:8], digest[8:16]))
    return first, second
