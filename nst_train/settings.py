"""Settings of training and labeling, the only place of their defaults. Imports no torch."""

import os
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from nst_data.prefetch import cpus_of_this_process
from nst_data.settings import DEFAULT_TOP_K, DENSE_CLASSES, ROWS_PER_SHARD, Later, ReadableSettings, Settings
from nst_train.cluster_settings import ClusterSettings
from nst_train.noise_settings import RANDAUGMENT_SETTINGS, Noise, PseudoNoise, TransformKind
from nst_train.presets import PRESETS, check_preset

MAX_THREADS = 1024  # more is a typo, and would overload the machine
MAX_RATE = 1e30  # times a batch size, float32 cannot hold more
PAPER_EPOCHS, PAPER_DECAY_EPOCHS = 350, 2.4
LossWeighting = Literal["concat", "sum", "code"]
CropDraw = Literal["torchvision", "released"]
# settings of TrainSettings that have no meaning without pseudo-labeled images
PSEUDO_LABEL_SETTINGS = ("ratio", "loss", "hard", "pseudo_temperature", "pseudo_only", "pseudo_noise")
# settings of TrainSettings that apply to a linear probe, whose network is frozen
PROBE_SETTINGS = ("preset", "model", "pretrained", "start", "probe", "class_weights", "image_size", "crop_pct", "precision", "seed")
RESIZED_CROP_SETTINGS = ("crop_scale_min", "crop_draw")  # of TrainSettings: replaced by a padded crop
AUGMENTATION_SETTINGS = ("flip", *RESIZED_CROP_SETTINGS, "crop_padding")  # of TrainSettings: replaced by `transform: evaluation`
STAIRCASE_SETTINGS = ("decay_rate", "decay_epochs")  # of TrainSettings: replaced by a cosine
_WORKER = re.compile(r"^\d+/[1-9]\d*$")
# settings of a preset that a given setting replaces if it is on
_REPLACED_SETTINGS = {
    "start": ("pretrained",),
    "epochs": ("steps",),
    "schedule_epochs": ("steps",),
    "steps": ("epochs", "schedule_epochs", "decay_epochs"),
    "hard": ("pseudo_temperature",),
    "freeze_batch_norm": ("batch_norm_decay",),
    "batch_norm_decay": ("freeze_batch_norm",),
    "crop_padding": RESIZED_CROP_SETTINGS,
}
LABEL_NOISE_SETTINGS = ("seed", "noise_transform")  # of LabelSettings: used by `noise` only


def deep_merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Merge `overrides` over `base`, recursively in nested dictionaries."""
    nested = {
        name: deep_merge(value, overrides[name])
        for name, value in base.items()
        if isinstance(value, dict) and isinstance(overrides.get(name), dict)
    }
    return base | overrides | nested


class TrainSettings(Settings):
    """What shapes a trained network. The defaults are the paper's (section 3.1), or the released code's where the paper gives none.

    Epochs, steps and the learning rate count labeled images only. The teacher of generation 0 is trained with noise too:
    Algorithm 1, step 1 minimizes over the noised network.
    """

    panel: ClassVar[str] = "Training"

    preset: Annotated[str | None, AfterValidator(check_preset)] = Field(
        None,
        exclude=True,  # its values identify a training
        json_schema_extra={"enum": [*PRESETS, None]},
        description="pretrained, pretrained-vit: nst's own, to finetune published weights on photographs. The paper's: efficientnet-b0 to "
        "-b7, efficientnet-l2, resnet-50, svhn, some with -code for the released code's. Explicit values win.",
    )
    model: str = Field(
        description="A timm model name, OWNER/NAME of a transformers model, local-dir:FOLDER or hf-hub:OWNER/NAME; set by the paper's "
        "presets."
    )
    pretrained: bool = Field(False, description="Start from the model's published weights; the paper trains from scratch.")
    image_size: int | None = Field(None, ge=8, le=8192, description="Training resolution in pixels; by default the network's own.")
    test_size: Annotated[int | None, Later(None)] = Field(
        None,
        ge=8,
        le=8192,
        description="Resolution in evaluation and labeling, in pixels; by default that of training. Random crops magnify objects, so about "
        "1.2 times as large is often better (FixRes).",
    )
    epochs: float = Field(PAPER_EPOCHS, gt=0, le=1e9, description="Epochs over the labeled images.")
    steps: Annotated[int | None, Later(None)] = Field(None, ge=1, le=10**9, description="Number of training steps, instead of `epochs`.")
    batch_size: int = Field(2048, ge=1, description="Labeled images per step, summed over all processes (global batch size).")
    ratio: int = Field(1, ge=1, description="Pseudo-labeled images per step, as a multiple of the labeled ones.")
    optimizer: str = Field("rmsproptf", description="An optimizer of timm (timm.optim.list_optimizers).")
    learning_rate: float = Field(
        0.016, gt=0, le=MAX_RATE, description="Base learning rate for 256 labeled images; scaled linearly with the batch size."
    )
    warmup_epochs: float = Field(5, ge=0, description="Epochs of linear warm-up from 0.")
    warmup_steps: Annotated[int | None, Later(None)] = Field(
        None, ge=0, le=10**9, description="Number of warm-up steps, instead of `warmup_epochs`."
    )
    schedule: Annotated[Literal["staircase", "cosine"], Later("staircase")] = Field(
        "staircase", description="After the warm-up: staircase as in the paper, or cosine to 0 at the end, as is usual in finetuning."
    )
    decay_rate: float = Field(0.97, gt=0, le=1, description="Decay factor of the staircase schedule.")
    decay_epochs: float | None = Field(
        None, gt=0, description="Epochs between decays of the staircase schedule; by default 2.4 per 350 epochs."
    )
    schedule_epochs: Annotated[float | None, Later(None)] = Field(
        None,
        gt=0,
        le=1e9,
        description="Train the last epochs of a schedule of this length, at its low learning rates; by default the whole schedule.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the optimizer.")
    layer_decay: Annotated[float | None, Later(None)] = Field(
        None,
        gt=0,
        le=1,
        description="Layer-wise learning-rate decay, as in timm; for pretrained networks.",
    )
    weight_decay: float = Field(1e-5, ge=0, le=MAX_RATE, description="Weight decay.")
    weight_decay_on: Annotated[Literal["all", "weights"], Later("weights")] = Field(
        "all",
        description="all: on all but normalization layers, as in the released code; weights: also not on biases and other vectors, "
        "as timm does: for pretrained networks.",
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="Label smoothing of labels and hard pseudo-labels; soft labels are not smoothed."
    )
    class_weights: Annotated[Literal["balanced"] | None, Later(None)] = Field(
        None,
        description="balanced: weight labeled images inversely to their class's frequency; pseudo-labels are balanced by `per_class`.",
    )
    loss: LossWeighting = Field(
        "concat",
        description="concat: mean over all images of a step; sum: mean + mean (Algorithm 1); code: mean + ratio x mean (released code).",
    )
    hard: bool = Field(False, description="Train on hard pseudo-labels, the most probable class of each, instead of soft ones.")
    pseudo_temperature: float = Field(
        1.0, gt=0, description="Temperature of the stored soft labels, p^(1/X): above 1 softer, below 1 harder."
    )
    pseudo_only: bool = Field(
        False, description="Leave the labeled images out of each step: pretraining on pseudo-labels, to finetune later (study 6)."
    )
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="EMA decay, with warm-up; the EMA weights are the final model.")
    batch_norm_decay: Annotated[float | None, Later(None)] = Field(
        None, ge=0, lt=1, description="Decay of batch norm's running statistics; by default the network's own (0.9 in timm)."
    )
    transform: Annotated[TransformKind, Later("training")] = Field(
        "training",
        description="evaluation: un-augmented images, resized and cropped as in evaluation; no random crop, flip or RandAugment.",
    )
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    crop_scale_min: float = Field(
        0.08, gt=0, le=1, description="Lower bound of the random-resized-crop scale; 1 takes a center crop, the largest square."
    )
    crop_draw: Annotated[CropDraw, Later("torchvision")] = Field(
        "torchvision",
        description="How random crops are drawn: evenly by area, as torchvision and timm do; released: by height and covering a tenth "
        "of the image, as the released code does, on average smaller.",
    )
    crop_padding: int = Field(
        0,
        ge=0,
        description="Reflect-pad by this many pixels and crop to size at random, instead of a random resized crop; 0 turns it off.",
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="Center-crop fraction in evaluation, as in timm; by default the network's own."
    )
    mixup: Annotated[float, Later(0)] = Field(
        0,
        ge=0,
        le=100,
        description="Mixup alpha, such as 0.2; 0 turns mixup off.",
    )
    cutmix: Annotated[float, Later(0)] = Field(
        0,
        ge=0,
        le=100,
        description="CutMix alpha, such as 1.0; 0 turns CutMix off. With `mixup`, each is used in half of the steps, as in timm.",
    )
    compute_threads: int | None = Field(
        None,
        ge=1,
        le=MAX_THREADS,
        description="CPU threads of the network; default: torch's; affects floating-point sums. Use 1 for small networks.",
    )
    noise: Noise = Field(Noise(), description="Noise of the network under training.")
    pseudo_noise: PseudoNoise = Field(PseudoNoise(), description="Where the noise of pseudo-labeled images differs (Table 6).")
    start: str | None = Field(
        None,
        description="Start from the weights of name@gen-N or another model; in a recipe, `teacher`: the previous generation (study 8).",
    )
    head_init: Annotated[Literal["network", "zero"], Later("network")] = Field(
        "network",
        description="Initialization of a new classification head: the network's own, or zeros (uniform predictions; for "
        "pretrained networks).",
    )
    probe: Annotated[bool, Later(False)] = Field(
        False, description="Linear probe: freeze the trained network and fit its last layer by logistic regression; takes minutes."
    )
    freeze: float = Field(0, ge=0, lt=1, description="Freeze this share of the blocks, from the first; with `start`, to finetune.")
    freeze_by: Annotated[Literal["blocks", "layers"], Later("layers")] = Field(
        "blocks",
        description="blocks: whole blocks, their batch norm and stochastic depth in evaluation mode, as in the released code; "
        "layers: single layers.",
    )
    freeze_batch_norm: Annotated[bool, Later(False)] = Field(
        False, description="Keep batch-norm in evaluation mode with its stored statistics; with `start` or `pretrained`, for few images."
    )
    clip_grad: float | None = Field(None, gt=0, description="Maximum norm of the gradient.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Gradient accumulation: split each step into this many parts, to fit in memory. Batch norm sees one part at a time.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Precision of the network; auto: fp32 on CPUs, bf16 on GPUs."
    )
    compile: bool = Field(False, description="Compile the network with torch.compile; worthwhile on a GPU.")
    channels_last: bool | None = Field(
        None,
        description="Images and weights in channels-last order; by default convolutional networks, on CPUs and on GPUs in bf16 or fp16.",
    )
    fused_attention: Annotated[bool, Later(True)] = Field(
        True, description="Attention by PyTorch's fused kernel; computing it step by step is faster on CPUs in bf16."
    )
    sync_batch_norm: bool = Field(False, description="Synchronize batch-norm over all processes.")
    validate_every: float | None = Field(
        None,
        gt=0,
        description="Epochs between validations; by default 1, or more, so that ten images are trained on for each one scored.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Random seed of initial weights, order and noise.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, content: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        """Given values override the preset, and the preset overrides the defaults."""
        preset = content.get("preset") if isinstance(content, dict) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return content
        if isinstance(content.get("noise"), Noise):  # from the Python API: only what was set
            content = content | {"noise": content["noise"].model_dump(exclude_unset=True)}
        replacing = {
            name for name in _REPLACED_SETTINGS if content.get(name) or (name == "batch_norm_decay" and content.get(name) is not None)
        }
        replaced = {replaced_name for name in replacing for replaced_name in _REPLACED_SETTINGS[name]}
        if content.get("epochs") is not None and content.get("schedule_epochs") is None:
            replaced.add("decay_epochs")  # it belongs to the preset's epochs
        if content.get("warmup_epochs") is not None or content.get("warmup_steps") is not None:
            replaced.update(("warmup_epochs", "warmup_steps"))
        if content.get("schedule") == "cosine":
            replaced.update(STAIRCASE_SETTINGS)
        if content.get("weight_decay_on") == "all":
            replaced.add("layer_decay")
        values = {name: value for name, value in PRESETS[preset].values.items() if name not in replaced}
        if isinstance(content.get("noise"), dict) and content["noise"].get("augmentation"):
            values["noise"] = {name: value for name, value in values["noise"].items() if name not in RANDAUGMENT_SETTINGS}
        return deep_merge(values, content)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.class_weights and self.pseudo_only:
            raise ValueError("`class_weights` weighs labeled images, which `pseudo_only` leaves out; remove one of them")
        if self.hard and self.pseudo_temperature != 1:
            raise ValueError("`pseudo_temperature` applies to soft labels, which `hard` does not use; give one of them")
        if self.freeze and not (self.start or self.pretrained):
            raise ValueError("`freeze` requires a trained network; add `start` or `pretrained`")
        if self.freeze_batch_norm and not (self.start or self.pretrained):
            raise ValueError("`freeze_batch_norm` requires a trained network; add `start` or `pretrained`")
        if self.freeze_batch_norm and self.batch_norm_decay is not None:
            raise ValueError("`batch_norm_decay` applies to statistics that `freeze_batch_norm` keeps fixed; remove one of them")
        if self.probe and not (self.start or self.pretrained):
            raise ValueError("`probe` requires a trained network; add `pretrained` or `start`")
        if self.start and self.pretrained:
            raise ValueError("`start` and `pretrained` both set the initial weights; remove one of them")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        fields = type(self).model_fields
        if self.steps and (self.schedule_epochs or self.epochs != fields["epochs"].default):
            raise ValueError("`steps` replaces `epochs` and `schedule_epochs`; give one of them")
        if self.warmup_steps is not None and self.warmup_epochs != fields["warmup_epochs"].default:
            raise ValueError("`warmup_steps` replaces `warmup_epochs`; give one of them")
        if self.schedule == "cosine" and any(getattr(self, name) != fields[name].default for name in STAIRCASE_SETTINGS):
            raise ValueError("`decay_rate` and `decay_epochs` apply to `schedule` staircase, not cosine; remove them")
        if self.layer_decay is not None and self.weight_decay_on == "all":
            raise ValueError("`layer_decay` groups weights as timm does, without decay of biases; add `weight_decay_on` weights")
        if self.schedule_epochs and self.schedule_epochs < self.epochs:
            raise ValueError(
                f"`schedule_epochs`: expected at least the {self.epochs:g} `epochs` of the training, found {self.schedule_epochs:g}"
            )
        return self

    def for_probe(self) -> Self:
        """A copy without settings that do not apply to a linear probe, so that they do not distinguish trainings."""
        fields = type(self).model_fields
        return self.model_copy(update={name: field.default for name, field in fields.items() if name not in PROBE_SETTINGS})

    @model_validator(mode="after")
    def _check_crops(self) -> Self:
        fields = type(self).model_fields
        if self.crop_padding and any(getattr(self, name) != fields[name].default for name in RESIZED_CROP_SETTINGS):
            raise ValueError("`crop_padding` replaces the random resized crop, its `crop_scale_min` and `crop_draw`; remove one of them")
        if self.transform == "evaluation" and (self.mixup or self.cutmix):
            raise ValueError(
                "`mixup` and `cutmix` augment images, which `transform` evaluation does not; set it to training, or remove them"
            )
        return self

    def for_request(self) -> dict[str, Any]:
        """All settings; for a linear probe only those that apply to it, and `freeze_by` only if something is frozen."""
        items = super().for_request().items()
        return {name: value for name, value in items if (name in PROBE_SETTINGS if self.probe else self.freeze or name != "freeze_by")}

    def for_labeled_only(self) -> Self:
        """A copy without settings of pseudo-labeled images, so that they do not distinguish trainings that have none."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in PSEUDO_LABEL_SETTINGS})

    def for_pseudo_only(self) -> Self:
        """The settings for a training without labeled images: steps have pseudo-labeled ones only, in a plain mean whatever the loss."""
        return self.model_copy(update={"pseudo_only": True, "loss": type(self).model_fields["loss"].default})

    @property
    def for_pseudo_images(self) -> Self:
        """The settings with which pseudo-labeled images are cropped, flipped and noised."""
        noise = self.pseudo_noise.model_dump(exclude_none=True)
        changed: dict[str, Any] = {name: noise.pop(name) for name in ("transform", "flip", "crop_scale_min") if name in noise}
        if "crop_scale_min" in changed:
            changed["crop_padding"] = 0  # a resized crop, or none, instead of a padded one
        if {"magnitude", "operations"} & noise.keys():
            noise["augmentation"] = None  # RandAugment, or none, instead of another augmentation
        return self.model_copy(update=changed | {"noise": self.noise.model_copy(update=noise)})

    def without_validation(self) -> Self:
        """A copy without settings of validation, so that they do not distinguish trainings without validation images."""
        return self.model_copy(update={"validate_every": None})

    @property
    def staircase_epochs(self) -> float:
        """Epochs between two decays of the learning rate."""
        return self.decay_epochs or (self.schedule_epochs or self.epochs) * PAPER_DECAY_EPOCHS / PAPER_EPOCHS


class LabelSettings(Settings):
    """Settings that determine the bytes of a labeling. Batches are fixed: logits of the same image differ bitwise between batch sizes."""

    batch_size: int | None = Field(
        None,
        ge=0,
        description="Images per forward pass; chosen for device and image size by default; 0 finds the largest that fits in memory.",
    )
    rows_per_shard: int = Field(ROWS_PER_SHARD, ge=1, description="Pool rows per parquet shard; progress is saved after each shard.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits: above 1 softer labels, below 1 harder ones.")
    top_k: int | None = Field(
        None, ge=1, description=f"Keep the K largest probabilities; by default all, above {DENSE_CLASSES:,} classes {DEFAULT_TOP_K}."
    )
    limit: int | None = Field(None, ge=1, description="Label only the first images of the pool.")
    noise: bool = Field(
        False, description="Label with the noise the teacher was trained with, or the paper's if unknown. Costs accuracy (Table 6)."
    )
    noise_transform: Annotated[TransformKind, Later("evaluation")] = Field(
        "training",
        description="What `noise` does to images: training's own crop, flip and RandAugment, in its order; or only RandAugment, before "
        "the resize and crop of evaluation.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of `noise`; unused without it.")
    exact_transform: bool = Field(
        False,
        description="Decode and resize with Pillow, exactly as timm and transformers do; the default is faster and differs by rounding.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Precision of the forward pass; auto: fp32 on CPUs, bf16 on GPUs."
    )
    compile: bool = Field(False, description="Compile the network with torch.compile; worthwhile on a GPU and many images.")

    def for_request(self) -> dict[str, Any]:
        """All settings; those of the noise only if it is on."""
        return {name: value for name, value in super().for_request().items() if self.noise or name not in LABEL_NOISE_SETTINGS}


class EmbedSettings(Settings):
    """Settings that determine features."""

    panel: ClassVar[str] = "Features"

    image_size: int | None = Field(None, ge=8, le=8192, description="Image size in pixels; by default the network's own.")
    crop_pct: float | None = Field(None, gt=0, le=1, description="Center-crop fraction, as in timm; by default the network's own.")
    batch_size: int | None = Field(None, ge=1, description="Images per forward pass; chosen for device and image size by default.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Precision of the forward pass; auto: fp32 on CPUs, bf16 on GPUs."
    )
    rows_per_shard: int = Field(10_000, ge=1, description="Rows per parquet shard; progress is saved after each shard.")


class ReadSettings(ReadableSettings):
    """How images are read; does not change the result."""

    decode_threads: int | None = Field(
        None,
        ge=1,
        le=MAX_THREADS,
        description="Threads that read, decode and, on a CPU, compute; for a GPU, processes that decode. By default one per CPU.",
    )


class EmbedRunSettings(ClusterSettings, ReadSettings):
    """How features are computed; does not change the result."""

    @classmethod
    def from_run(cls, run: ReadSettings | None) -> Self:
        """Create from run settings, or from settings of reading images only."""
        if run is None or isinstance(run, cls):
            return run or cls()
        settings_class = EmbedRunSettings if isinstance(run, EmbedRunSettings) else ReadSettings
        return cls(**{name: getattr(run, name) for name in settings_class.model_fields})


class LabelRunSettings(EmbedRunSettings):
    """How labeling runs; does not change the result."""

    worker: str | None = Field(
        None,
        description="i/n: this process is worker i, from 0, of n on one store; set by torchrun otherwise.",
    )
    retry_errors: bool = Field(False, description="Retry unreadable images before the generation is sealed.")

    @field_validator("worker")
    @classmethod
    def _check_worker(cls, value: str | None) -> str | None:
        if value is not None and not _WORKER.match(value):
            raise ValueError("expected i/n, such as 0/4 for the first of four")
        return value

    @model_validator(mode="after")
    def _check_worker_range(self) -> Self:
        if self.worker and self.rank_and_size[0] >= self.rank_and_size[1]:
            raise ValueError(
                f"worker {self.worker}: expected one from 0/{self.rank_and_size[1]} to {self.rank_and_size[1] - 1}/{self.rank_and_size[1]}"
            )
        if self.worker and self.engine == "ray":
            raise ValueError("`worker` splits the work among processes, and `engine` ray does so by itself; remove one of them")
        return self

    @property
    def rank_and_size(self) -> tuple[int, int]:
        """(i, n): this process is worker i of n."""
        if self.worker:
            index, _, count = self.worker.partition("/")
            return int(index), int(count)
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def default_workers(cores: int, on_gpu: bool) -> int:
    """Number of decoding processes: on a CPU the network needs the cores too, a GPU waits for images (benchmarks/results/gpu.md)."""
    return max(1, min(16, cores - 1)) if on_gpu else max(1, min(2, cores))


class RunSettings(ReadSettings):
    """How training runs; does not change the result."""

    workers: int | None = Field(
        None,
        ge=0,
        le=MAX_THREADS,
        description="Processes that decode and augment; by default one per core, up to 2 on CPUs and 16 with a GPU; 0: none.",
    )
    checkpoint_minutes: float = Field(
        5.0,
        ge=0,
        description="Minutes between checkpoints; an epoch's end also writes one if the last is a minute old. 0: one at every step.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="Number of checkpoints to keep; if the newest is damaged, the one before it is used."
    )
    tracker: tuple[str, ...] = Field(
        (), description="A tracker of Accelerate, such as wandb; repeatable. Default: tensorboard if installed; none for no tracker."
    )

    def workers_on(self, device_type: str) -> int:
        """The requested number of processes, or else one that suits this machine and the training device, such as `cuda`."""
        return default_workers(cpus_of_this_process(), device_type != "cpu") if self.workers is None else self.workers
