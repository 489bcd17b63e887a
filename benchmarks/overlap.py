"""How well and how fast `nst balance --exclude` finds near-duplicates.

    python benchmarks/overlap.py copies --images ../shared/data/imagenet-samples/samples.parquet    # how many changed copies are found
    python benchmarks/overlap.py copies --images digits --side 32                                   # scikit-learn's, enlarged
    python benchmarks/overlap.py distinct --images digits                                           # how many distinct ones are dropped
    python benchmarks/overlap.py pool --pool ../shared/data/cifar10/unlabeled.parquet --held-out ../shared/data/cifar10/test.parquet \\
        --sheet sheet.png                                                                           # the search, and 40 of its pairs
    python benchmarks/overlap.py hashes --images ../shared/data/cifar10/unlabeled.parquet           # a million against 50,000

`hashes` takes hashes of real images with some bits changed, so that bands are as skewed as they are; random ones; a mix with images that
repeat; and copies of 200 images alone, each thousands of times.
"""

import argparse
import io
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from nst_data.images import decode, image_hash, phash, phash_thumbnail
from nst_data.selection.hash_index import MAX_DISTANCE, HashIndex
from nst_data.selection.overlap import DECODED_SIDE_PX, HeldOut, ImageDescriptors, find_near_duplicates
from nst_data.sources import Source, open_source

BATCH = 65_536  # rows that parquet gives at a time
RESAMPLINGS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def resized(image: Image.Image, factor: float, resampling: Image.Resampling) -> Image.Image:
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), resampling)


def brighter(image: Image.Image, factor: float = 1.0, levels: float = 0.0) -> Image.Image:
    return Image.fromarray((np.asarray(image, np.float32) * factor + levels).clip(0, 255).round().astype(np.uint8))


def copies(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """The changes that the issue names, each alone, and two of them together."""
    for percent in (50, 60, 75, 90, 110, 125, 150):
        for resampling in RESAMPLINGS:
            yield f"resized to {percent}%", encoded(resized(image, percent / 100, resampling))
    for quality in (50, 60, 75, 85, 95):
        yield f"JPEG {quality}", encoded(image, "JPEG", quality=quality)
    for percent in (-5, 5):
        yield f"brightness {percent:+}%", encoded(brighter(image, 1 + percent / 100))
        yield f"brightness {percent:+}% of white", encoded(brighter(image, levels=percent * 2.55))
    yield "resized to 50% and JPEG 50", encoded(resized(image, 0.5, RESAMPLINGS[1]), "JPEG", quality=50)


def thumbnail(image: bytes) -> np.ndarray:
    return phash_thumbnail(decode(image, DECODED_SIDE_PX))


def found(originals: ImageDescriptors, hashes: np.ndarray, copied: ImageDescriptors, copied_hashes: np.ndarray) -> np.ndarray:
    """(copies, 3): near by hash, near by hash and look, and the distance of the hashes; the i-th copy is of the i-th original."""
    distance = np.bitwise_count(hashes.view(np.uint64) ^ copied_hashes.view(np.uint64))
    rows = (slice(row, row + 1) for row in range(len(hashes)))
    is_alike = np.array([originals.take(row).matches(copied.take(row))[0] for row in rows])
    return np.stack([distance <= MAX_DISTANCE, (distance <= MAX_DISTANCE) & is_alike, distance], axis=1)


def images_of(name: str, side: int | None, limit: int) -> list[Image.Image]:
    if name == "digits":
        from sklearn.datasets import load_digits

        images = [Image.fromarray(pixels).convert("RGB") for pixels in (load_digits().images * (255 / 16)).round().astype(np.uint8)]
    else:
        source = open_source(name)
        images = [decode(row.read()) for row in source.rows(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(np.int64))]
    images = images[:: max(1, len(images) // limit)]
    return [resized(image, side / min(image.size), Image.Resampling.LANCZOS) for image in images] if side else images


def measure_copies(images: list[Image.Image], plain_too: bool) -> None:
    """Recall by kind of copy."""
    first = np.stack([thumbnail(encoded(image)) for image in images])
    clear = ImageDescriptors.from_thumbnails(first).contrasts >= 2 if not plain_too else np.ones(len(first), bool)
    images, first = [image for image, is_clear in zip(images, clear, strict=True) if is_clear], first[clear]
    by_kind = defaultdict(list)
    with ThreadPoolExecutor() as threads:
        for copied in zip(*threads.map(lambda image: [(kind, thumbnail(copy)) for kind, copy in copies(image)], images), strict=True):
            thumbnails = np.stack([pixels for _, pixels in copied])
            by_kind[copied[0][0]].append(
                found(
                    ImageDescriptors.from_thumbnails(first), phash(first), ImageDescriptors.from_thumbnails(thumbnails), phash(thumbnails)
                )
            )
    print(f"{len(images)} images\n| copy | near by hash | found | largest distance |\n|---|---|---|---|")
    single = []
    for kind, parts in by_kind.items():
        near, is_duplicate, distance = np.concatenate(parts).T
        single += [is_duplicate] if " and " not in kind else []
        print(f"| {kind} | {near.mean():.1%} | {is_duplicate.mean():.1%} | {distance.max()} |")
    print(f"| all single changes | | {np.concatenate(single).mean():.2%} | |")


def measure_distinct(images: list[Image.Image]) -> None:
    """Each image against all others, all of them distinct."""
    thumbnails = np.stack([thumbnail(encoded(image)) for image in images])
    looks, hashes = ImageDescriptors.from_thumbnails(thumbnails), phash(thumbnails)
    index, pairs, duplicates = HashIndex(hashes), 0, []
    for row in range(len(images)):
        near = index.find_near(int(hashes[row]))
        near = near[near > row]
        pairs += len(near)
        duplicates += [(row, int(neighbor)) for neighbor in near[looks.take(near).matches(looks.take(slice(row, row + 1)))]]
    subject = f"{len(images)} distinct images, {len(images) * (len(images) - 1) // 2:,} pairs"
    print(f"{subject}: {pairs} near by hash, {len(duplicates)} called duplicates")


def measure_pool(pool: Source, held_out: Source, sheet: str | None) -> None:
    """The whole search; the labels' hashes are made first, and not counted."""
    with ThreadPoolExecutor() as threads:
        rows = list(threads.map(lambda row: (row.id, row.key, image_hash(row.read()), thumbnail(row.read())), pool.rows(range(len(pool)))))
    hashes = phash(np.stack([one for *_, one in rows]))
    batch = pa.record_batch(
        [*(list(column) for column in zip(*(row[:3] for row in rows), strict=True)), hashes], names=["id", "key", "image_hash", "phash"]
    )
    since = time.perf_counter()
    held = HeldOut.read([held_out], with_near_duplicates=True)
    read_at = time.perf_counter()
    overlap = find_near_duplicates([batch], held, lambda candidates: (pool, candidates["id"].to_numpy()))
    searched_at = time.perf_counter()
    held_hashes, held_looks = zip(
        *((image_hash(row.read()), thumbnail(row.read())) for row in held_out.rows(range(len(held_out)))), strict=True
    )
    print(
        f"{len(pool):,} images of the pool, {len(held_out):,} held out: equal bytes {len(held.image_hashes & {row[2] for row in rows})}, ",
        end="",
    )
    print(f"compared {overlap.compared}, near-duplicates {len(overlap.image_hashes)}; ", end="")
    print(f"reading the held-out images {read_at - since:.1f} s, the search {searched_at - read_at:.1f} s")
    near = [(row, one) for row in rows if row[2] in overlap.image_hashes for one in _partners(row, hashes, held)]
    print(f"held-out images with one: {len({one for _, one in near})}; all hashes differ: {len(set(held_hashes)) == len(held_hashes)}")
    if sheet:
        _write_sheet(sheet, [(held_looks[one], row[3]) for row, one in near])


def _partners(row: tuple, hashes: np.ndarray, held: HeldOut) -> list[int]:
    """The held-out images that one image of the pool looks like; every one is clear enough here to stand in `looks`."""
    look = ImageDescriptors.from_thumbnails(row[3][None])
    near = held.index.find_near(int(hashes[row[0]]))
    return near[held.descriptors.take(near).matches(look)].tolist()


def _write_sheet(path: str, pairs: list[tuple[np.ndarray, np.ndarray]], count: int = 40, side: int = 96) -> None:
    """Pairs side by side: the held-out image, the pool's."""
    chosen = [pairs[index] for index in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
    sheet = Image.new("RGB", (5 * (2 * side + 12), -(-len(chosen) // 5) * (side + 18)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(chosen):
        left, top = number % 5 * (2 * side + 12), number // 5 * (side + 18)
        draw.text((left, top + side), str(number), fill="black")
        for place, pixels in enumerate(pair):
            sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (left + place * side, top))
    sheet.save(path)


def measure_hashes(images: list[Image.Image], pool: int, held_out: int) -> None:
    """The lookup alone, in batches as they come from parquet."""
    rng = np.random.default_rng(0)
    real = phash(np.stack([phash_thumbnail(image) for image in images])).view(np.uint64)
    kinds: dict[str, Callable[[int], np.ndarray]] = {
        "real": lambda count: _flipped(real[rng.integers(0, len(real), count)], rng, 12),
        "random": lambda count: rng.integers(0, 2**64, count, dtype=np.uint64),
        "popular": lambda count: _flipped(real[rng.integers(0, 200, count)], rng, 8),
        "one": lambda count: np.full(count, real[0]),
    }
    mixed_shares = {"real": 0.7, "random": 0.2, "popular": 0.05, "one": 0.05}
    for title, shares in (("real", {"real": 1.0}), ("random", {"random": 1.0}), ("mixed", mixed_shares), ("popular", {"popular": 1.0})):
        held, queries = (
            np.concatenate([kinds[kind](int(share * count)) for kind, share in shares.items()]).view(np.int64) for count in (held_out, pool)
        )
        rng.shuffle(queries)
        tracemalloc.start()
        sum(int(HashIndex(held).any_near(queries[start : start + BATCH]).sum()) for start in range(0, pool // 5, BATCH))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        since = time.perf_counter()
        index = HashIndex(held)
        indexed_at = time.perf_counter()
        near = sum(int(index.any_near(queries[start : start + BATCH]).sum()) for start in range(0, pool, BATCH))
        seconds = time.perf_counter() - indexed_at
        print(
            f"{title}: {pool:,} hashes against {held_out:,}: index {indexed_at - since:.2f} s, lookup {seconds:.1f} s, {near:,} "
            "candidates, "
            f"at most {peak / 2**20:,.0f} MB for index and lookup"
        )


def _flipped(hashes: np.ndarray, rng: np.random.Generator, bits: int) -> np.ndarray:
    """Up to so many bits changed in each."""
    for _ in range(bits):
        hashes = hashes ^ np.where(
            rng.random(len(hashes)) < 0.5, np.uint64(1) << rng.integers(0, 64, len(hashes)).astype(np.uint64), np.uint64(0)
        )
    return hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["copies", "distinct", "pool", "hashes"])
    parser.add_argument("--images", default="digits", metavar="SOURCE", help="a source, or `digits`")
    parser.add_argument("--side", type=int, metavar="PX", help="resize the shorter side first")
    parser.add_argument("--limit", type=int, default=2000, metavar="N")
    parser.add_argument("--plain-too", action="store_true", help="copies of images without contrast too")
    parser.add_argument("--pool", metavar="SOURCE")
    parser.add_argument("--held-out", metavar="SOURCE")
    parser.add_argument("--sheet", metavar="FILE.png")
    args = parser.parse_args()
    if args.what == "copies":
        measure_copies(images_of(args.images, args.side, args.limit), args.plain_too)
    elif args.what == "distinct":
        measure_distinct(images_of(args.images, args.side, args.limit))
    elif args.what == "pool":
        measure_pool(open_source(args.pool), open_source(args.held_out), args.sheet)
    else:
        measure_hashes(images_of(args.images, args.side, args.limit), 1_000_000, 50_000)


if __name__ == "__main__":
    main()
