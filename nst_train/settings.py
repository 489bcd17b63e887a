"""Settings of noise, training, labeling and of a recipe: the only home of their defaults. Imports no torch."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nst_data.settings import BalanceSettings, Settings
from nst_data.store import check_name

PAPER_EPOCHS, PAPER_DECAY_EPOCHS = 350, 2.4
Weighing = Literal["concat", "sum", "code"]


class Noise(Settings):
    """The noise of a network that is trained (section 2). Its defaults are the paper's for EfficientNet-B7 and L2.

    Labeling and evaluation take no Noise: a teacher is never noised. `Noise.none()` trains without.
    """

    magnitude: int = Field(27, ge=0, le=100, description="RandAugment magnitude, unclipped: 27 of 10.")
    operations: int = Field(2, ge=0, le=10, description="RandAugment operations per image; 0 turns RandAugment off.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout before the classifier.")
    stochastic_depth: float = Field(0.2, ge=0, lt=1, description="Chance that the last block is skipped; linear from 0 at the first.")

    @classmethod
    def none(cls) -> Self:
        """No RandAugment, no dropout, no stochastic depth."""
        return cls(magnitude=0, operations=0, dropout=0, stochastic_depth=0)


class TrainSettings(Settings):
    """What shapes a trained network. The defaults are the paper's, section 3.1; where it is silent, the released code's.

    Epochs, steps and the learning rate count labeled images only. The teacher of generation 0 is trained with noise too:
    Algorithm 1, step 1 minimizes over the noised network.
    """

    model: str = Field(description="A timm network, or local-dir:FOLDER or hf-hub:OWNER/NAME in timm's format.")
    pretrained: bool = Field(False, description="Start from the model's published weights; the paper trains from scratch.")
    image_size: int | None = Field(None, ge=8, description="Side of the training images in pixels; the network's own by default.")
    epochs: float = Field(PAPER_EPOCHS, gt=0, description="Passes over the labeled images.")
    batch_size: int = Field(2048, ge=1, description="Labeled images in a step, over all processes.")
    ratio: int = Field(1, ge=1, description="Pseudo-labeled images in a step, as a multiple of the labeled ones.")
    optimizer: str = Field("rmsproptf", description="Any optimizer of timm.optim.create_optimizer_v2.")
    learning_rate: float = Field(0.016, gt=0, description="Per 256 labeled images of a step; grows with the batch size.")
    warmup_epochs: float = Field(5, ge=0, description="Epochs in which the learning rate rises linearly from 0.")
    decay_rate: float = Field(0.97, gt=0, le=1, description="Factor of each step down of the learning rate.")
    decay_epochs: float | None = Field(None, gt=0, description="Epochs between steps down; 2.4 for 350 epochs, in proportion for others.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the optimizer.")
    weight_decay: float = Field(1e-5, ge=0, description="Weight decay, on all but biases and normalization.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="On labeled images and hard pseudo-labels; soft ones stay as they are.")
    loss: Weighing = Field(
        "concat", description="Mean over both parts of a step; sum: mean + mean (Algorithm 1); code: mean + ratio x mean (released code)."
    )
    hard: bool = Field(False, description="Train on hard pseudo-labels, the most probable class of each, instead of soft ones.")
    pseudo_temperature: float = Field(1.0, gt=0, description="On stored soft labels, p^(1/X): above 1 softer, below 1 harder.")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="Decay of the averaged weights, with warm-up; they are the result.")
    flip: float = Field(0.5, ge=0, le=1, description="Chance of a horizontal flip.")
    crop_scale_min: float = Field(
        0.08, gt=0, le=1, description="Smallest share of the image that a random crop keeps; 1 takes the largest square in its middle."
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="Share of the shorter side that evaluation keeps; the network's own by default."
    )
    compute_threads: int | None = Field(
        None, ge=1, description="CPU threads of the network, torch's own number by default; sums depend on it. Small networks want 1."
    )
    noise: Noise = Field(Noise(), description="Noise of the network under training.")
    validate_every: float | None = Field(
        None, gt=0, description="Epochs between two validations; by default 1, more where ten images are not trained on for each scored."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Decides initial weights, order and noise.")

    @model_validator(mode="after")
    def _temperature_is_of_soft_labels(self) -> Self:
        if self.hard and self.pseudo_temperature != 1:
            raise ValueError("`pseudo_temperature` is for soft labels and `hard` trains on none; give one of them")
        return self

    def of_labeled_alone(self) -> Self:
        """Without what speaks of pseudo-labeled images: where there are none, with and without it is one training."""
        spoken = ("ratio", "loss", "hard", "pseudo_temperature")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in spoken})

    def without_validation(self) -> Self:
        """Without what speaks of validation images: where there are none, with and without it is one training."""
        return self.model_copy(update={"validate_every": None})

    @property
    def staircase_epochs(self) -> float:
        """Epochs between two steps down of the learning rate."""
        return self.decay_epochs or self.epochs * PAPER_DECAY_EPOCHS / PAPER_EPOCHS


DENSE_CLASSES, DEFAULT_TOP_K = 1_000, 100


class LabelSettings(Settings):
    """What shapes the bytes of a labeling. Fixed batches: logits of the same image differ bitwise between batch sizes."""

    batch_size: int | None = Field(
        None, ge=0, description="Images in a forward pass; by default what suits the device and image size, 0 tries what fits its memory."
    )
    rows_per_shard: int = Field(50_000, ge=1, description="Pool rows in a parquet shard; work done is kept shard by shard.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits: above 1 softer labels, below 1 harder ones.")
    top_k: int | None = Field(
        None, ge=1, description=f"Keep the K largest probabilities; by default all, above {DENSE_CLASSES:,} classes {DEFAULT_TOP_K}."
    )
    limit: int | None = Field(None, ge=1, description="Label only the first images of the pool.")
    exact_transform: bool = Field(
        False, description="Decode and resize with Pillow, as the teacher's own code does, instead of faster to within rounding."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Of the forward pass; auto: fp32 on CPUs, bf16 on GPUs.")
    compile: bool = Field(False, description="Compile the network with torch.compile; pays on a GPU and many images.")


class ReadSettings(Settings):
    """How images are read; shapes no data."""

    decode_threads: int | None = Field(None, ge=1, description="Threads that read, decode and, on a CPU, compute; one per CPU by default.")


class LabelRunSettings(ReadSettings):
    """How labeling runs; shapes no data."""

    worker: str | None = Field(
        None, pattern=r"^\d+/[1-9]\d*$", description="i/n: this is worker i, from 0, of n on one store; torchrun's processes know theirs."
    )
    retry_errors: bool = Field(False, description="Read images that could not be read once more before the generation is sealed.")

    @model_validator(mode="after")
    def _worker_is_one_of_n(self) -> Self:
        if self.worker and self.share[0] >= self.share[1]:
            raise ValueError(f"worker {self.worker}: expected one from 0/{self.share[1]} to {self.share[1] - 1}/{self.share[1]}")
        return self

    @property
    def share(self) -> tuple[int, int]:
        """(i, n): this is worker i of n."""
        if self.worker:
            index, _, count = self.worker.partition("/")
            return int(index), int(count)
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class RunSettings(ReadSettings):
    """How training runs; shapes no data."""

    workers: int = Field(2, ge=0, description="Processes that decode and augment; 0 does it in the training process.")
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="Minutes between checkpoints; the end of an epoch writes one after a minute already. 0 writes one at every step.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="Checkpoints that are kept; a damaged one is passed over for the one before.")
    tracker: tuple[str, ...] = Field(
        (), description="A tracker of Accelerate, such as wandb; several allowed. By default tensorboard where it is installed; or none."
    )


class SourceSettings(Settings):
    """A source in a recipe; a relative path starts at the recipe's folder."""

    source: str
    image_column: str | None = Field(None, description="The column with the images, where there are several.")
    class_names: str | None = Field(None, description="A file with one class name a line, for integer labels without names.")


class SelectSettings(BalanceSettings):
    """The selection of a recipe."""

    when: Literal["every_generation", "once"] = Field(
        "every_generation", description="once: later teachers label the images that were selected for the first student, as in the paper."
    )


class Recipe(Settings):
    """The whole loop. Generation 0 is the teacher, trained on labeled images alone; each next one a student."""

    name: Annotated[str, AfterValidator(check_name)]
    labeled: SourceSettings
    validation: SourceSettings | None = Field(None, description="Decides which weights of a training are kept; else the last ones are.")
    test: SourceSettings | None = None
    pool: SourceSettings
    seed: int = Field(0, ge=0, lt=2**31)
    label: LabelSettings = LabelSettings()
    select: SelectSettings = SelectSettings()
    generations: list[TrainSettings] = Field(min_length=2)
    control: bool = Field(False, description="Also train the last network on labeled images alone, with the same noise and steps.")
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _validation_has_images(self) -> Self:
        if self.validation is None and any(one.validate_every is not None for one in self.generations):
            raise ValueError("`validate_every` speaks of validation images; add a line `validation: {source: ...}` or leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, content: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        """Each part takes the recipe's seed where it names none of its own."""
        if not isinstance(content, dict):
            return content
        seed = content.get("seed", 0)
        parts = {"select": content.get("select", {}), "generations": content.get("generations", [])}
        if isinstance(parts["select"], dict):
            parts["select"] = {"seed": seed, **parts["select"]}
        if isinstance(parts["generations"], list):
            parts["generations"] = [{"seed": seed, **one} if isinstance(one, dict) else one for one in parts["generations"]]
        return content | parts
