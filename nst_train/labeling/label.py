"""The un-noised teacher over a pool: soft labels, shard by shard (Algorithm 1, step 2)."""

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from nst_data.cards import cards
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress
from nst_data.settings import default_top_k
from nst_data.sources import Source, what_changed
from nst_data.sources.changes import HASH, Reading, hashes_in
from nst_data.sources.listing import read_listing, write_listing
from nst_data.sources.unreadable import are_too_many, check_readable
from nst_data.store.files import discard
from nst_data.store.manifest import Input, Request, SealedFile, is_anonymous
from nst_data.store.staging import NotReadyError
from nst_data.store.store import Staging, Store, Version
from nst_data.tables.schema import balanced_schema, pseudo_labels_schema
from nst_data.tables.shards import ShardPlan, Shards, TableReader
from nst_train.classifiers.inference import Computation, choose_computation, computation_of
from nst_train.classifiers.teacher_calibration import calibration_input, fit
from nst_train.classifiers.teachers import Teacher, is_in_store, load_teacher, teacher_entries
from nst_train.labeling.earlier_labels import EarlierLabels, extension_part, like_part
from nst_train.labeling.labeling import Labeling, NoAnswerError, Part, PartMaker, WholePart
from nst_train.settings import LabelRunSettings, LabelSettings

_COMMIT = re.compile(r"@[0-9a-f]{40}")
_ROW_BYTES = 100  # key, hashes and numbers


def label(
    store: Store,
    corpus: str,
    teacher: str | Sequence[str],
    pool: Source,
    settings: LabelSettings | None = None,
    generation: int | None = None,
    run: LabelRunSettings | None = None,
    progress: Progress | None = None,
    calibration: Source | None = None,
) -> Version:
    """Label every image of `pool` with `teacher` into a sealed generation of `corpus`.

    Several teachers are an ensemble: the mean of their probabilities. `calibration` are labeled images to fit the temperature on. What was
    labeled before, also by a run that was killed, is not labeled again. Each image ends in `pseudo_labels` or, with the reason, in
    `errors`. Any number of processes may run this at once: they share the shards, and the bytes are the same.
    """
    settings = settings or LabelSettings()
    _check_not_like(store, corpus, generation)
    work = _Work(store, pool, settings, run or LabelRunSettings(), progress or Progress())
    inputs = work.inputs(teacher)
    if calibration is not None and settings.noise:
        raise UsageError("--calibrate and --noise: calibration needs an un-noised teacher; remove one of them")
    if calibration is not None:
        inputs["calibration"] = calibration_input(store, inputs, settings, calibration)
        work.calibration = calibration
    staging = work.begin(Request(kind="generation", settings=settings.for_request(), inputs=inputs), corpus, generation)
    if isinstance(staging, Version):
        return staging
    rows = min(len(pool), settings.limit or len(pool))
    return work.make(staging, rows, "pseudo_labels", lambda start, stop, _: WholePart(range(start, stop)))


def extend(
    store: Store, generation: Version, pool: Source, run: LabelRunSettings | None = None, progress: Progress | None = None
) -> Version:
    """Label what a grown pool has more than the pool of `generation`, by the same teacher and settings, into a new generation.

    The whole of the grown pool stands in it: rows with the bytes of an image that was labeled are taken over, joined by `image_hash`.
    """
    request = generation.manifest.request
    if "adopted" in request.inputs:
        raise UsageError(f"{generation.ref} was adopted, so its teacher is unknown; label the whole pool without --extend")
    settings = _settings_of(generation)
    work = _Work(store, pool, settings, run or LabelRunSettings(), progress or Progress())
    earlier = {role: entry for role, entry in request.inputs.items() if role.startswith("teacher") or role == "calibration"}
    _check_not_strange(generation, earlier, store)
    inputs = work.inputs([_at_its_commit(entry) for role, entry in earlier.items() if role != "calibration"])
    for role in inputs.keys() - {"pool"}:
        if inputs[role].digest != earlier[role].digest:
            raise NstError(f"{earlier[role].ref}: its weights are not those that labeled {generation.ref}; label the whole pool again")
    inputs |= earlier
    inputs["extended"] = generation.lineage
    staging = work.begin(Request(kind="generation", settings=settings.for_request(), inputs=inputs), generation.folder.parent.name, None)
    if isinstance(staging, Version):
        return staging
    labels = EarlierLabels(generation, staging.work)

    def part(start: int, stop: int, show_life: Callable[[], None]) -> Part:
        return extension_part(pool, labels, start, stop, work.run.decode_threads, show_life)

    return work.make(staging, len(pool), "pseudo_labels", part, earlier=generation)


def _settings_of(generation: Version) -> LabelSettings:
    """How a generation was labeled, for the whole of a pool, whatever its limit. Raises UsageError for other settings."""
    try:
        return LabelSettings.model_validate(generation.manifest.request.settings | {"limit": None})
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "settings"
        raise UsageError(
            f"--extend {generation.ref}: its manifest has settings that this nst does not label by ({place}: {error.errors()[0]['msg']}); "
            "label the whole pool, without --extend"
        ) from None


def _check_not_like(store: Store, corpus: str, generation: int | None) -> None:
    """Raises NstError for the number of a generation that has only an edition, labeled again: it would seem to be drawn from this one."""
    requests = [(one.ref, one.manifest.request) for one in store.versions(corpus) if one.is_readable]
    requests += [(one.ref, one.request) for one in store.stagings(corpus)]
    for ref, request in requests:
        if ref.startswith(f"{corpus}@gen-{generation}.") and "like" in request.inputs:
            raise NstError(f"{ref} is a relabeled edition, without its pool; omit the generation for the next free one")


def _check_not_strange(generation: Version, earlier: Mapping[str, Input], store: Store) -> None:
    """Raises UsageError where the Hub names a teacher that is not in the store: a folder or a repository is not opened for that."""
    for role, entry in earlier.items():
        if role != "calibration" and entry.pulled and not is_in_store(entry.ref, store):
            raise UsageError(
                f"--extend {generation.ref}: its teacher {entry.ref!r} comes from a downloaded manifest and is not in the store; "
                "`nst pull` it, or label the whole pool with a teacher of your choice, without --extend"
            )


def _at_its_commit(teacher: Input) -> str:
    """The name of a teacher that labeled before, at the commit that its revision meant then."""
    return f"{teacher.ref.partition('@')[0]}@{teacher.revision}" if teacher.revision and "/" in teacher.ref else teacher.ref


def label_like(
    store: Store,
    edition: Version,
    teacher: str | Sequence[str],
    pool: Source,
    settings: LabelSettings | None = None,
    generation: int | None = None,
    run: LabelRunSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """New soft labels for the rows of an edition, with the same copies: the first edition of a new generation.

    As the paper does after its one selection (section 3.1), and the released code's "reassign".
    """
    settings = settings or LabelSettings()
    work = _Work(store, pool, settings, run or LabelRunSettings(), progress or Progress())
    inputs = {**work.inputs(teacher), "like": edition.lineage}
    corpus = edition.folder.parent.name
    taken = {one.ref for one in store.versions(corpus)} | {one.ref for one in store.stagings(corpus)}
    if generation is not None and f"{corpus}@gen-{generation}" in taken:
        raise NstError(f"{corpus}@gen-{generation} is a labeling of the whole pool; omit the generation for the next free one")
    request = Request(kind="edition", settings=settings.for_request(), inputs=inputs)
    staging = work.begin(request, corpus, generation, edition=1 if generation is not None else None)
    if isinstance(staging, Version):
        return staging
    selected = TableReader(edition.folder, "balanced")
    same_pool = pool.fingerprint == edition.manifest.request.inputs["pool"].digest

    def part(start: int, stop: int, _: Callable[[], None]) -> Part:
        return like_part(pool, selected, same_pool, start, stop)

    return work.make(staging, min(len(selected), settings.limit or len(selected)), "balanced", part, like=edition)


@dataclasses.dataclass
class _Work:
    """What the three ways of labeling have in common."""

    store: Store
    pool: Source
    settings: LabelSettings
    run: LabelRunSettings
    progress: Progress
    calibration: Source | None = None
    _teacher: Teacher | None = None
    _names: tuple[str, ...] = ()

    def inputs(self, teacher: str | Sequence[str]) -> dict[str, Input]:
        """The lineage: teachers and pool. A teacher in the store is not loaded for it."""
        self._names = (teacher,) if isinstance(teacher, str) else tuple(teacher)
        entries = teacher_entries(self._names, self.store)
        if entries is None:
            self._teacher, entries = load_teacher(self._names, self.store, self.settings.exact_transform, self._noise_seed)
        return {**entries, "pool": self.pool.lineage}

    @property
    def _noise_seed(self) -> int | None:
        return self.settings.seed if self.settings.noise else None

    @property
    def teacher(self) -> Teacher:
        """The teacher, loaded when it is first needed."""
        if self._teacher is None:
            self._teacher, _ = load_teacher(self._names, self.store, self.settings.exact_transform, self._noise_seed)
        return self._teacher

    def begin(self, request: Request, corpus: str, generation: int | None, edition: int | None = None) -> Version | Staging:
        """The version that is asked for, sealed or under way.

        Raises NstError where its pool or teacher changed on the way, or too many images of the pool are not there.
        """
        for line in self.pool.remarks():
            self.progress.say(line)
        self._check_there()
        for staging in self.store.stagings(corpus):
            begun_on = staging.work / "pool.arrow"  # not there yet: nothing was done
            moved = _moved(staging.request, request) if begun_on.exists() else None
            if moved is not None:
                change = what_changed(read_listing(begun_on), self.pool.listing()) if moved == "pool" else "its weights are others"
                raise NstError(
                    f"{request.inputs[moved].ref}: the {moved} has changed since {staging.ref} was begun with it: {change}; "
                    f"restore it and rerun, or `nst remove {staging.ref}` and label again"
                )
        staged = self.store.begin(request, corpus, generation, edition)
        self._check_unchanged(staged)
        if isinstance(staged, Version):
            self._say_found(staged)
        elif not (staged.work / "pool.arrow").exists():
            write_listing(staged.work / "pool.arrow", self.pool.listing())
        return staged

    def _check_there(self) -> None:
        """Else the pool would be another one with its images back, and what was begun be of no use."""
        rows = min(len(self.pool), self.settings.limit or len(self.pool))
        missing, first = self.pool.empty_files(rows)
        check_readable(self.pool.location, rows, missing, self.run.max_unreadable, f"{first!r}, which is empty or missing")

    def _check_unchanged(self, staged: Version | Staging) -> None:
        """Raises NstError where images that were labeled or calibrated on hold other bytes by now, at the same names and sizes."""
        if isinstance(staged, Version):
            folder, made, about = staged.folder, staged.manifest.created, ("made", ", or ask for another --generation N")
            is_comparable = not is_anonymous(staged.manifest)
        else:
            folder, made, about, is_comparable = staged.build, None, ("begun", ""), True
        (verb, another), fitted = about, Reading(folder, "calibration")
        read = [(self.pool, Reading(folder, "pool"), hashes_in(folder), made)]
        read += [(self.calibration, fitted, fitted.kept(), None)] if self.calibration is not None else []
        for source, reading, known, since in read:
            if self.run.share[0] == 0 and is_comparable:
                remedy = f"`nst remove {staged.ref}` and label again{another}"
                reading.check(source, known, f"{staged.ref} was {verb}", remedy, self.progress, since)
            if isinstance(staged, Staging):
                reading.begin(source)

    def _say_found(self, version: Version) -> None:
        """Raises NstError for a version without a label, which an earlier nst sealed where it could read no image."""
        counts = version.manifest.counts
        errors, labels = counts.get("errors", 0), counts["unique" if version.manifest.kind == "edition" else "labeled"]
        again = f"`nst remove {version.ref}` and rerun to label them"
        if not labels:
            raise NstError(f"{version.ref} exists but has no labels, since none of its {errors:,} images could be read; {again}")
        unreadable = f"{errors:,} unreadable image{'s are' if errors > 1 else ' is'} missing from it"
        sealed = "--retry-errors does nothing to a sealed version, " if self.run.retry_errors else ""
        left_out = f"; {unreadable}: {sealed}{again}" if errors else ""
        self.progress.say(f"{version.ref} already exists: same teacher, images and settings{left_out}")

    def make(self, staging: Staging, rows: int, table: str, part: PartMaker, **about: Any) -> Version:  # noqa: ANN401
        """Label what is missing and seal; where another process seals first, its version is the result."""
        return staging.shared(lambda: self._make(staging, rows, table, part, **about))

    def _make(
        self,
        staging: Staging,
        rows: int,
        table: str,
        part: PartMaker,
        earlier: Version | None = None,
        like: Version | None = None,
    ) -> Version:
        since = time.monotonic()
        with staging.refusable():
            teacher, computation = self.teacher, self._computation(staging)
            top_k = self._top_k(len(teacher.class_names))
            schema = (balanced_schema if like else pseudo_labels_schema)(teacher.class_names, top_k)
            about = self._calibration(staging, teacher, computation, earlier)
        plan = ShardPlan(rows, self.settings.rows_per_shard, table)
        shards = Shards(staging.build, staging.work, plan)
        self._say_size(staging, plan, top_k or len(teacher.class_names), top_k is not None)
        temperature = about["calibration"]["temperature"] if "calibration" in about else self.settings.temperature
        labeling = Labeling(
            staging, shards, part, self.pool, teacher, computation, temperature, schema, self.run.decode_threads, self.run.share
        )
        about |= {"top_k": top_k, "teacher_parameters": teacher.parameters}
        while True:
            try:
                files, counts = self._label_all(labeling, since)
            except NoAnswerError:
                discard(staging.folder)
                raise
            counts |= about
            if like is not None:
                counts = _counts_like(like, staging, counts)
            cards.write_dataset_card(staging, teacher.class_names, counts)
            with suppress(NotReadyError):  # another process, which retries errors, has begun to make a shard again
                return staging.seal(files, teacher.class_names, counts, dataclasses.asdict(computation), partial(shards.are_as_in, files))

    def _label_all(self, labeling: Labeling, since: float) -> tuple[dict[str, SealedFile], dict[str, Any]]:
        """Label until nothing is missing. A shard that was done is missing again while a process makes it anew for images that healed.

        Images that an earlier run could not read in large numbers are read again first. Raises NstError where too many cannot be read.
        """
        shards = labeling.shards
        if any(are_too_many(shards.plan.size(shard), len(unread), self.run.max_unreadable) for shard, unread in shards.unread()):
            self._retry_errors(labeling)
        self._label(labeling, since)
        if self.run.retry_errors:
            self._retry_errors(labeling)
        while True:
            if shards.missing():
                self._label(labeling, time.monotonic())
            try:
                files, counts = shards.finish(labeling.teacher.class_names)
            except FileNotFoundError:
                if not shards.missing():
                    raise
            else:
                no_answer = counts.get("no_answer", 0)
                if no_answer and not counts["labeled"]:
                    raise labeling.no_answers(f"{no_answer:,}")
                what, unread = f"{labeling.staging.ref}: {self.pool.location}", counts["errors"] - no_answer
                check_readable(what, counts["pool"], unread, self.run.max_unreadable, shards.first_unread())
                return files, counts

    def _retry_errors(self, labeling: Labeling) -> None:
        if healed := labeling.retry_errors():
            images = f"{healed:,} previously unreadable image{'s are' if healed > 1 else ' is'} readable now"
            self.progress.say(f"{labeling.staging.ref}: {images}; rewriting their shards")

    def _label(self, labeling: Labeling, since: float) -> None:
        plan = labeling.shards.plan
        done = plan.rows - sum(plan.size(shard) for shard in labeling.shards.missing())
        with self.progress.task(f"label {labeling.staging.ref}", plan.rows, "images", done) as task:
            labeling.run(task, self.progress.say, since)

    def _computation(self, staging: Staging) -> Computation:
        """How the first process that began this chose to compute."""
        chosen = staging.work / "computation.json"
        s = self.settings
        fresh = None if chosen.exists() else choose_computation(self.teacher, s.batch_size, s.precision, s.compile)
        return computation_of(staging.remembered("computation", dataclasses.asdict(fresh) if fresh else {}), staging.ref)

    def _top_k(self, classes: int) -> int | None:
        return self.settings.top_k if self.settings.top_k is not None else default_top_k(classes)

    def _calibration(self, staging: Staging, teacher: Teacher, computation: Computation, earlier: Version | None) -> dict[str, Any]:
        """The fitted temperature and what it did, for the manifest and the card; nothing where none was asked for."""
        if earlier is not None:
            return {name: value for name, value in earlier.manifest.counts.items() if name == "calibration"}
        if self.calibration is None:
            return {}
        fitted: dict[str, Any] = {}
        if not (staging.work / "calibration.json").exists():
            hashes = np.zeros(len(self.calibration), HASH)
            fitted = fit(teacher, computation, self.calibration, self.run.decode_threads, self.run.max_unreadable, hashes)
            Reading(staging.build, "calibration").keep(hashes)
        return {"calibration": staging.remembered("calibration", fitted)}

    def _say_size(self, staging: Staging, plan: ShardPlan, values: int, with_labels: bool) -> None:
        needed = plan.rows * (values * (6 if with_labels else 2) + _ROW_BYTES)
        free = shutil.disk_usage(staging.folder).free
        shards = f"{len(plan):,} shard" + ("s" if len(plan) > 1 else "")
        size = f"about {needed / 2**20:,.0f} MB" if needed > 2**20 else "under 1 MB"
        warning = f", only {free / 2**20:,.0f} MB are free" if needed > free else ""
        self.progress.say(f"{staging.ref}: {plan.rows:,} image{'s' * (plan.rows > 1)} in {shards}, {size} on disk{warning}")


def _moved(there: Request, asked: Request) -> str | None:
    """The pool or teacher that is not what it was, where two requests ask for the same labeling with inputs of the same names."""
    if (there.kind, there.settings, there.inputs.keys()) != (asked.kind, asked.settings, asked.inputs.keys()):
        return None
    if any(_COMMIT.sub("", there.inputs[role].ref) != _COMMIT.sub("", asked.inputs[role].ref) for role in asked.inputs):
        return None
    return next((role for role, entry in asked.inputs.items() if entry.digest != there.inputs[role].digest), None)


def _counts_like(like: Version, staging: Staging, counts: dict[str, Any]) -> dict[str, Any]:
    """The counts of an edition: its parent's, with the classes that the new labels give."""
    parent, errors, no_answer = like.manifest.counts, counts["errors"], counts.get("no_answer", 0)
    lost = {"unreadable": errors - no_answer, "no_answer": no_answer}
    rows = pl.scan_parquet(staging.build / "balanced" / "*.parquet").group_by("label").agg(pl.col("copies").sum(), pl.len()).collect()
    found = {label: {"unique": unique, "copies": copies} for label, copies, unique in rows.iter_rows()}
    none = {"unique": 0, "copies": 0}
    per_class = {name: {"labeled": images, **found.get(index, none)} for index, (name, images) in enumerate(counts["per_class"].items())}
    return {
        **{name: counts[name] for name in ("top_k", "teacher_parameters", "errors")},
        "labeled": like.manifest.count("labeled"),
        "dropped": {**parent.get("dropped", {}), **{reason: images for reason, images in lost.items() if images}},
        "kept": like.manifest.count("kept") - errors,
        "unique": counts["labeled"],
        "copies": sum(one["copies"] for one in per_class.values()),
        "classes_without_images": [name for name, one in per_class.items() if not one["unique"]],
        "per_class": per_class,
    }
