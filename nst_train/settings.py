"""Settings of noise, training, labeling and of a recipe: the only home of their defaults. Imports no torch."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from nst_data.settings import BalanceSettings, Settings
from nst_data.store import check_name

PAPER_EPOCHS, PAPER_DECAY_EPOCHS = 350, 2.4


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
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="On labeled images; pseudo-labels are soft as they are.")
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
    seed: int = Field(0, ge=0, lt=2**31, description="Decides initial weights, order and noise.")

    @property
    def staircase_epochs(self) -> float:
        """Epochs between two steps down of the learning rate."""
        return self.decay_epochs or self.epochs * PAPER_DECAY_EPOCHS / PAPER_EPOCHS


class LabelSettings(Settings):
    """What shapes the bytes of a labeling. Fixed batches: logits of the same image differ bitwise between batch sizes."""

    batch_size: int = Field(256, ge=1, description="Images in a forward pass; a batch never spans two shards.")
    rows_per_shard: int = Field(50_000, ge=1, description="Pool rows in a parquet shard; work done is kept shard by shard.")


class RunSettings(Settings):
    """How a command runs; shapes no data."""

    workers: int = Field(2, ge=0, description="Processes that decode and augment; 0 does it in the training process.")
    decode_threads: int = Field(4, ge=1, description="Threads that decode while labeling and evaluating.")
    checkpoint_minutes: float = Field(5.0, ge=0, description="Minutes between checkpoints; 0 writes one at every step.")


class SourceSettings(Settings):
    """A source in a recipe; a relative path starts at the recipe's folder."""

    source: str
    class_names: str | None = Field(None, description="A file with one class name a line, for integer labels without names.")


class Recipe(Settings):
    """The whole loop. Generation 0 is the teacher, trained on labeled images alone; each next one a student."""

    name: Annotated[str, AfterValidator(check_name)]
    labeled: SourceSettings
    test: SourceSettings | None = None
    pool: SourceSettings
    seed: int = Field(0, ge=0, lt=2**31)
    label: LabelSettings = LabelSettings()
    select: BalanceSettings = BalanceSettings()
    generations: list[TrainSettings] = Field(min_length=2)
    control: bool = Field(False, description="Also train the last network on labeled images alone, with the same noise and steps.")
    run: RunSettings = RunSettings()

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
