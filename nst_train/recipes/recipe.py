"""The settings of a recipe: the whole loop. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from nst_data.safe_names import fold_name
from nst_data.settings import Settings
from nst_data.store.store import check_name
from nst_data.store.version import is_review_ref
from nst_train.noise_settings import RANDAUGMENT_SETTINGS
from nst_train.presets import PRESETS
from nst_train.recipes.sections import (
    EvaluationSettings,
    LabelSectionSettings,
    PushToSettings,
    SelectSettings,
    SourceSettings,
    TeacherSettings,
)
from nst_train.settings import PAPER_EPOCHS, RunSettings, TrainSettings, deep_merge
from nst_train.zero_shot_settings import ZeroShot

_NOT_INHERITED = ("name", "finetune", "start", "pretrained", "probe", "pseudo_only", "freeze", "freeze_by")
_SCHEDULE_SETTINGS = ("learning_rate", "warmup_epochs", "warmup_steps", "schedule", "decay_rate", "decay_epochs", "schedule_epochs")


def inherited_settings(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a generation, as written, that also hold for its `finetune` unless that sets them."""
    # the finetuning's unit of length replaces the other one; and a test size belongs to the image size next to it
    alternatives = {"epochs": "steps", "steps": "epochs", "warmup_steps": "warmup_epochs", "image_size": "test_size"}
    finetune = generation["finetune"]
    dropped = {*_NOT_INHERITED, *(alternatives[name] for name in finetune if name in alternatives)}
    if "preset" in finetune:  # its own preset, with its own schedule
        dropped |= {"epochs", "steps", *_SCHEDULE_SETTINGS, *_preset_values(finetune)} - {"model"}
    settings = {name: value for name, value in generation.items() if name not in dropped}
    own_noise, noise = finetune.get("noise"), settings.get("noise")
    if isinstance(own_noise, dict) and isinstance(noise, dict) and own_noise.keys() & set(RANDAUGMENT_SETTINGS):
        settings["noise"] = {name: value for name, value in noise.items() if name != "augmentation"}
    return settings


def finetune_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a `finetune`: the un-augmented images of section 3.1, and the end of the first training's schedule.

    Images stay augmented after pretraining on pseudo-labels (study 6). Its own learning rate, warm-up or decay makes a separate schedule,
    which starts at its full rate. `start` is resolved when the first training is done.
    """
    finetune = generation["finetune"]
    schedule_epochs, epochs = _written_epochs(generation, "schedule_epochs"), _written_epochs({**generation, **finetune})
    counts_epochs = not _counts_steps(generation) and not _counts_steps(inherited_settings(generation) | finetune)
    is_end = counts_epochs and not any(name in finetune for name in (*_SCHEDULE_SETTINGS, "preset")) and schedule_epochs >= epochs
    schedule: dict[str, float | None] = {"schedule_epochs": schedule_epochs if is_end else None}
    if not is_end and finetune.get("warmup_steps") is None and "preset" not in finetune:
        schedule |= {"warmup_epochs": 0, "warmup_steps": None}
    images = {} if generation.get("pseudo_only") else {"transform": "evaluation"}
    is_augmented = (images | finetune).get("transform", "training") == "training"
    unmixed = {} if generation.get("pseudo_only") and is_augmented else {"mixup": 0, "cutmix": 0}
    sizes = {} if is_augmented else {"test_size": None}  # for images that no crop magnifies
    return {"start": "the first training", **schedule, **images, **unmixed, **sizes}


def _written_epochs(settings: Mapping[str, Any], *preferred_names: str) -> float:
    """The epochs of settings as written; 0 if they are not a number, which is reported elsewhere."""
    values = {"epochs": PAPER_EPOCHS} | _preset_values(settings) | dict(settings)
    epochs = next(values[name] for name in (*preferred_names, "epochs") if values.get(name) is not None or name == "epochs")
    return epochs if isinstance(epochs, int | float) else 0


def _counts_steps(settings: Mapping[str, Any]) -> bool:
    """Whether settings as written, or their preset, give the length of a training in steps."""
    in_epochs = settings.get("epochs") or settings.get("schedule_epochs")
    return bool(settings.get("steps") or ("steps" in _preset_values(settings) and not in_epochs))


def _preset_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    preset = settings.get("preset")
    return PRESETS[preset].values if isinstance(preset, str) and preset in PRESETS else {}


class GenerationSettings(TrainSettings):
    """A generation of a recipe: one training and, with `finetune`, a second one on labeled images only.

    `finetune` lists the settings that differ from the first training. By default the second one starts from the weights of the first, at
    the end of its learning-rate schedule, on unaugmented images. So a larger test resolution (section 3.1) is
    `finetune: {epochs: 1.5, image_size: 800, crop_pct: 0.9615, freeze: 0.95}`. Pretraining and finetuning (study 6), on augmented images,
    is `pseudo_only: true` before it.
    """

    finetune: TrainSettings | None = Field(None, description="A second training on labeled images only: what differs in it.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_finetune(cls, content: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        if not isinstance(content, dict) or not isinstance(content.get("finetune"), dict):
            return content
        return content | {"finetune": deep_merge(inherited_settings(content) | finetune_defaults(content), content["finetune"])}

    @property
    def first_training(self) -> TrainSettings:
        """The settings of the first training, or of the only one."""
        return TrainSettings.model_validate(self.model_dump(exclude={"finetune", "name"}) | {"preset": self.preset})


class StudentSettings(GenerationSettings):
    """One of several students of one teacher."""

    name: str = Field(description="Name suffix: `b0` in the recipe flowers becomes flowers-teacher-b0.")


@dataclass(frozen=True)
class Network:
    """A network that a recipe trains: its generation, and the place of its settings in the recipe."""

    generation: int
    settings: GenerationSettings
    place: tuple[str, int]

    @property
    def student_name(self) -> str | None:
        """Its name, if it is one of several students of one teacher."""
        return self.settings.name if isinstance(self.settings, StudentSettings) else None

    def store_name(self, recipe: str, kind: str = "teacher") -> str:
        """Its name in the store, or that of its control."""
        return f"{recipe}-{kind}" + ("" if self.student_name is None else f"-{self.student_name}")

    @property
    def key(self) -> str:
        """Its place as shown in messages."""
        return ".".join(map(str, self.place))

    def written_in(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """What the recipe's file spells out for this network."""
        key, index = self.place
        return dict(content[key][index])


MAY_BE_EMPTY = ("label", "select", "evaluate", "run")  # an empty section is the default one


class Recipe(Settings):
    """The whole loop. Generation 0 is the teacher, trained on labeled images only, or `teacher`; the later generations are students.

    With a `teacher`, `labeled` may be left out: students are then trained on pseudo-labels only.

    `students` are several networks of one teacher, the last of `generations` or `teacher`: the last generation.
    """

    name: Annotated[str, AfterValidator(check_name)] = Field(description="Name of the corpus; the models are called NAME-teacher.")
    labeled: SourceSettings | None = Field(None, description="Labeled images: `{source: photos/labeled}`, a folder per class.")
    validation: SourceSettings | None = Field(
        None, description="Images to select the best weights by; without them the last weights are kept."
    )
    test: SourceSettings | None = Field(None, description="Labeled images, used for evaluation only.")
    holdout: float | None = Field(
        None, gt=0, lt=1, description="Without `test`: this share of each class's labeled images is held out of training to test on."
    )
    pool: SourceSettings = Field(description="Unlabeled images.")
    seed: int = Field(0, ge=0, lt=2**31, description="Default random seed of every step; the same seed gives the same bytes.")
    label: LabelSectionSettings = Field(LabelSectionSettings(), description="How the pool is labeled.")
    select: SelectSettings = Field(SelectSettings(), description="Which pseudo-labeled images students are trained on.")
    teacher: TeacherSettings | None = Field(
        None,
        description="A trained model in place of generation 0, named like the `teacher` of `label`; or "
        "`{model: ..., class_names: names.txt}`, an image-text model that labels by the names of the classes.",
    )
    generations: list[GenerationSettings] = Field([], description="The teacher, unless `teacher` names one, and its students.")
    reviews: dict[int, str] = Field(
        {},
        description="Reviewed labels, as NAME@review-N; `{2: flowers@review-1}`: from generation 2 on.",
    )
    students: list[StudentSettings] = Field([], description="Several students of the last teacher, each with a `name` (study 1).")
    evaluate: list[EvaluationSettings] = Field([], description="More to measure of each generation: `{suite: [corruptions, fgsm]}`.")
    control: bool = Field(
        False,
        description="Also train the last networks on labeled images only, with the same noise and steps; `start: teacher` "
        "means the first teacher.",
    )
    run: RunSettings = Field(RunSettings(), description="How trainings run on this machine; changes no result.")
    push_to: PushToSettings | None = Field(None, description="Repositories on the Hub to push every version to.")

    @property
    def networks(self) -> list[Network]:
        """The networks to train, in order."""
        first = 0 if self.teacher is None else 1
        chain = [Network(first + index, settings, ("generations", index)) for index, settings in enumerate(self.generations)]
        last = first + len(chain)
        return [*chain, *(Network(last, settings, ("students", index)) for index, settings in enumerate(self.students))]

    def review_for(self, generation: int) -> str | None:
        """The review that a generation is trained with, if any."""
        return next((ref for first, ref in sorted(self.reviews.items(), reverse=True) if first <= generation), None)

    @field_validator("teacher", mode="before", json_schema_input_type=str | TeacherSettings | None)
    @classmethod
    def _parse_teacher(cls, value: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        if isinstance(value, ZeroShot):
            return value.model_dump()
        return {"model": value} if isinstance(value, str) else value

    @field_validator("reviews", mode="before", json_schema_input_type=str | dict[int, str])
    @classmethod
    def _parse_reviews(cls, value: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        by_generation = {0: value} if isinstance(value, str) else value
        if not isinstance(by_generation, dict):
            raise ValueError("expected NAME@review-N, or from which generation on: `{2: NAME@review-N}`")
        if invalid := [ref for ref in by_generation.values() if not (isinstance(ref, str) and is_review_ref(ref) and "/" not in ref)]:
            raise ValueError(f"expected reviews of the store with their number, such as flowers@review-1, found {invalid[0]!r}")
        return by_generation

    @model_validator(mode="after")
    def _check_reviews(self) -> Self:
        last = self.networks[-1].generation if self.networks else 0
        if invalid := [first for first in self.reviews if not 0 <= first <= last]:
            raise ValueError(f"`reviews`: there is no generation {invalid[0]}; expected 0 to {last}")
        if self.select.when == "once" and any(first > 1 for first in self.reviews):
            raise ValueError("with `when: once` the selection is made for the first student; give `reviews` for generation 0 or 1")
        return self

    @property
    def is_tested(self) -> bool:
        """Whether there are test images, given or held out."""
        return self.test is not None or self.holdout is not None

    @model_validator(mode="after")
    def _check_one_test_set(self) -> Self:
        if self.test is not None and self.holdout is not None:
            raise ValueError("`holdout` is for recipes without `test` images; remove one of them")
        return self

    @model_validator(mode="after")
    def _check_has_student(self) -> Self:
        if self.teacher is not None and not self.networks:
            raise ValueError("`teacher` has no student; add one, such as `generations: [{model: ...}]`")
        if self.teacher is None and (not self.generations or len(self.networks) < 2):
            raise ValueError(
                f"`generations`: expected settings of a teacher and of a student or more, found {len(self.generations)}; "
                "a teacher that is trained already is named as `teacher: MODEL`"
            )
        return self

    @model_validator(mode="after")
    def _check_needed_labels(self) -> Self:
        if self.labeled is not None:
            return self
        if self.teacher is None:
            raise ValueError("`labeled` is missing: a teacher is trained on labeled images; add them, or a `teacher` that needs none")
        for key in ("holdout", "control", "reviews"):
            if getattr(self, key):
                raise ValueError(f"`{key}` needs labeled images; add a line `labeled: {{source: ...}}`, or remove it")
        for network in self.networks:
            for key in ("finetune", "class_weights", "probe"):
                if getattr(network.settings, key):
                    raise ValueError(f"`{network.key}.{key}` needs labeled images; add a line `labeled: {{source: ...}}`, or remove it")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.teacher is None or self.teacher.class_names is None:
            return self
        last = self.networks[-1].generation
        for network in self.networks:
            is_control = self.control and network.generation == last
            if network.settings.start == "teacher" and (network.generation == 1 or is_control):
                kind = "a control" if network.generation > 1 else "a student"
                raise ValueError(f"`{network.key}.start`: {kind} cannot start from the first teacher, an image-text model; remove it")
        return self

    @model_validator(mode="after")
    def _check_student_names(self) -> Self:
        names = [
            name
            for student in self.students
            for name in (student.name, *([f"{student.name}-before-finetuning"] if student.finetune else []))
        ]
        folded_names = [fold_name(name) for name in names]  # otherwise the run would stop after training the first of them
        if repeated := [name for name in names if folded_names.count(fold_name(name)) > 1]:
            raise ValueError(f"`students`: two are called {repeated[0]}; give one of them another `name`")
        for network in self.networks:
            check_name(network.store_name(self.name))
        return self

    @model_validator(mode="after")
    def _check_named_models(self) -> Self:
        own_models = {network.store_name(self.name, kind) for network in self.networks for kind in ("teacher", "control")}
        first_teacher, by = f"{self.name}-teacher@gen-0", self.select.by
        teacher = self.teacher.model if self.teacher else None
        if by is not None and (by == teacher or (by.partition("@")[0] in own_models and (by != first_teacher or teacher is None))):
            reason = "is the teacher" if by == teacher else "is trained by this recipe"
            raise ValueError(f"`select.by` {by} {reason}; name another model, or remove `by`: with `when: once` the first teacher selects")
        if teacher is None:
            return self
        if teacher != first_teacher and teacher.partition("@")[0] in own_models:
            raise ValueError(f"`teacher` {teacher}: this recipe trains students of that name; give it another `name`")
        if teacher != first_teacher and any(settings.relative_to == first_teacher for settings in self.evaluate):
            raise ValueError(f"`relative_to` {first_teacher}: there is no generation 0 beside `teacher`; write {teacher}")
        return self

    @model_validator(mode="after")
    def _check_first_generation(self) -> Self:
        if self.teacher is not None:
            return self
        if self.generations[0].start == "teacher" or self.generations[0].pseudo_only:
            raise ValueError("the first generation has no teacher and no pseudo-labels; give it no `start: teacher` and no `pseudo_only`")
        return self

    @model_validator(mode="after")
    def _check_probes(self) -> Self:
        if any(network.generation and network.settings.probe for network in self.networks):
            raise ValueError("`probe` trains on labeled images only: it is for the first generation, and for a `finetune`")
        return self

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.validation is None and any(
            settings.validate_every is not None or (settings.finetune and settings.finetune.validate_every is not None)
            for settings in (*self.generations, *self.students)
        ):
            raise ValueError("`validate_every` needs validation images; add a line `validation: {source: ...}` or remove it")
        return self

    @field_validator("evaluate", mode="before", json_schema_input_type=EvaluationSettings | list[EvaluationSettings])
    @classmethod
    def _parse_evaluate(cls, value: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check_streamed_sources(self) -> Self:
        """Training reads single images repeatedly, which would take many times as long over the network."""
        for role in ("labeled", "validation"):
            if (source := getattr(self, role)) and source.stream:
                raise ValueError(
                    f"`stream` is for `pool`, `test` and the `data` of `evaluate`; `{role}` images are read repeatedly; remove it there"
                )
        if len(self.pool.sources) > 1:
            raise ValueError(
                f"`pool` takes one source, found {len(self.pool.sources)}; put them below one folder, or name them in a .txt list"
            )
        if self.pool.stream and not (self.select.embed_images and self.select.when == "every_generation"):
            raise ValueError(
                "`stream` on the pool needs `select: {embed_images: true}` and `when: every_generation`, since students read the images "
                "every epoch; add them or remove `stream`"
            )
        return self

    @model_validator(mode="after")
    def _check_evaluation_data(self) -> Self:
        if not self.is_tested and any(settings.data is None for settings in self.evaluate):
            raise ValueError(
                "`evaluate` uses the test images if it has no `data`; add a line `test: {source: ...}` or `holdout: 0.2`, or set `data`"
            )
        return self

    @model_validator(mode="after")
    def _check_result_names(self) -> Self:
        """Otherwise one would overwrite the other."""
        names = ["test"] if self.is_tested else []
        for settings in self.evaluate:
            if self.is_tested and settings.data is None and settings.name in (None, "test") and "suite" not in settings.model_fields_set:
                raise ValueError("`evaluate` has no suite, and the unmodified test images are always measured; add `suite: [corruptions]`")
            for name in map(settings.result_name, settings.suite):
                if name in names:
                    raise ValueError(f"`evaluate` records two results as {name!r} in metrics.json; give one of them another `name`")
                names.append(name)
        return self

    @model_validator(mode="before")
    @classmethod
    def _distribute_seed(cls, content: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        """Use the recipe's seed in each part that does not set its own."""
        if not isinstance(content, dict):
            return content
        content = {name: value for name, value in content.items() if value is not None or name not in MAY_BE_EMPTY}
        seed = content.get("seed", 0)
        parts = {name: content.get(name, {}) for name in ("select", "label")}
        parts |= {name: content.get(name, []) for name in ("generations", "students")}
        for name in ("select", "label"):
            if isinstance(parts[name], dict):
                parts[name] = {"seed": seed, **parts[name]}
        for name in ("generations", "students"):
            if isinstance(parts[name], list):
                parts[name] = [{"seed": seed, **entry} if isinstance(entry, dict) else entry for entry in parts[name]]
        evaluate = content.get("evaluate", [])
        if evaluate and isinstance(evaluate, dict | list):
            entries = evaluate if isinstance(evaluate, list) else [evaluate]
            parts["evaluate"] = [{"seed": seed, **entry} if isinstance(entry, dict) else entry for entry in entries]
        return content | parts
