"""How a run trains: one frozen dataclass, its presets in `configs/train/`. Imports no jax.

Every field can be overridden on the command line of `train.py` (`--optimizer.learning-rate 3e-4`), and
its docstring is the help text.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

from ultrapixel_jax.config import CascadeConfig, ScheduleName, check_dtype, to_dict
from ultrapixel_jax.data.config import LR_LATENT, DataConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sizes import lr_latent
from ultrapixel_jax.training.watching import LogConfig, MeasuresConfig, PicturesConfig, ValidationConfig

LossWeight = Literal["adaptive", "p2", "none"]


@dataclasses.dataclass(frozen=True)
class DiffusionTraining:
    """How noise is drawn and its prediction weighted (section 5)."""

    schedule: ScheduleName = "cosine"
    """Noise schedule."""
    shift: float = 1.0
    """Adds 2·log(1/shift) to logSNR."""
    loss_weight: LossWeight = "adaptive"
    """By logSNR: `adaptive` divides by the running mean of the loss, `p2` is 1/(1 + SNR)."""
    adaptive_buckets: int = 300
    """Parts of logSNR from -10 to 10 that have a running mean each; in short runs of small batches fewer
    learn theirs sooner."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(ScheduleName):
            raise UserError(f"task.diffusion.schedule {self.schedule!r:.80} is not known")
        if not self.shift > 0:
            raise UserError(f"task.diffusion.shift {self.shift} must be positive")
        if self.adaptive_buckets < 2:
            raise UserError(f"task.diffusion.adaptive_buckets {self.adaptive_buckets} must be 2 or more")


@dataclasses.dataclass(frozen=True)
class GuidanceTask:
    """UltraPixel: the four guidance networks on a frozen stage C (paper eq. 5)."""

    diffusion: DiffusionTraining = DiffusionTraining()
    frozen_dropout: bool = False
    """Keep the frozen network's dropout on in the HR pass, as the released implementation does."""


@dataclasses.dataclass(frozen=True)
class LoraTask:
    """Low-rank changes of stage C's attention alone, without guidance (the paper's ablation)."""

    diffusion: DiffusionTraining = DiffusionTraining()
    frozen_dropout: bool = False
    """Keep the frozen network's dropout on."""


@dataclasses.dataclass(frozen=True)
class PersonalTask:
    """Low-rank changes of stage C, and new words, from a few pictures of one subject (section D).

    At the low resolution first, without guidance; then half of the time so, and half with the frozen guidance
    networks at the high resolution.
    """

    diffusion: DiffusionTraining = DiffusionTraining()
    frozen_dropout: bool = False
    """Keep the frozen network's dropout on."""
    lr_steps: int = 5_000
    """Updates at the low resolution alone. Without model.guidance all are at the pictures' one resolution."""

    def __post_init__(self) -> None:
        if self.lr_steps < 0:
            raise UserError(f"task.lr_steps {self.lr_steps} must be 0 or more")


@dataclasses.dataclass(frozen=True)
class ControlNetTask:
    """A ControlNet (`model.controlnet`) on a frozen stage C, steered by its training pictures' own maps."""

    diffusion: DiffusionTraining = DiffusionTraining(loss_weight="p2")
    backbone: Literal["effnet_encoder", "nothing"] = "effnet_encoder"
    """What the backbone of canny's and inpainting's begins as: that of the sources' EffNet encoder, its
    first convolution's channels copied (one: red; more than three: zeros beyond), or random numbers."""
    frozen_statistics: bool = True
    """Batch norm of the backbone by the running statistics that it came with, as released; off, by those of
    the batch, which are kept for sampling: for a backbone that begins as random numbers."""
    offset_noise: float = 0.0
    """Standard deviation of noise that a whole channel of a sample gets."""
    frozen_dropout: bool = False
    """Keep the frozen network's dropout on."""

    def __post_init__(self) -> None:
        if self.backbone not in ("effnet_encoder", "nothing"):
            raise UserError(
                f"task.backbone {self.backbone!r:.80} is not known; use effnet_encoder or nothing"
            )
        if not 0 <= self.offset_noise <= 10:
            raise UserError(f"task.offset_noise {self.offset_noise} is outside 0 to 10")


@dataclasses.dataclass(frozen=True)
class StageCTask:
    """Stage C from latents and text."""

    diffusion: DiffusionTraining = DiffusionTraining()
    train_text_encoder: bool = False
    """Train the text encoder too, from nothing or from a source; else it is frozen."""
    dropout: bool = True
    """The configured dropout on."""


@dataclasses.dataclass(frozen=True)
class StageBTask:
    """Stage B, from stage A's latent, the EffNet latent and pooled text."""

    diffusion: DiffusionTraining = DiffusionTraining()
    train_encoder: bool = True
    """Train the EffNet encoder with it; else it is frozen."""
    condition_scales: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875, 1.0)
    """The encoder sees the image at one of these scales, drawn anew for each micro-batch."""
    condition_dropout: float = 0.1
    """Probability that an image's EffNet latent is replaced by zeros."""
    pyramid_levels: tuple[int, int] = (1, 16)
    """Shortest side of the coarsest and finest map of the pyramid noise; 0 0 gives plain noise."""
    draws: int = 1
    """Noise levels that each image is trained at in a step: its encoding serves all of them."""
    dropout: bool = True
    """The configured dropout on."""

    def __post_init__(self) -> None:
        if not self.condition_scales or not all(0 < s <= 1 for s in self.condition_scales):
            raise UserError(f"task.condition_scales {self.condition_scales} must lie in (0, 1]")
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"task.condition_dropout {self.condition_dropout} is outside [0, 1]")
        if self.draws < 1:
            raise UserError(f"task.draws {self.draws} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class StageATask:
    """Stage A by reconstruction, with the vector quantizer's codebook and commitment losses."""

    quantizer_weight: float = 1.0
    """Weight of codebook loss + 0.25·commitment loss."""
    quantize_probability: float = 1.0
    """Share of the images whose latent is quantized before decoding; the cascade decodes without."""
    crop: int = 256
    """Side in pixels of the random crop that is trained on; 0 takes the whole image."""

    def __post_init__(self) -> None:
        if self.crop % 32 or self.crop < 0:
            raise UserError(f"task.crop {self.crop} must be a multiple of 32, or 0")
        if not 0 <= self.quantize_probability <= 1:
            raise UserError(f"task.quantize_probability {self.quantize_probability} is outside [0, 1]")


@dataclasses.dataclass(frozen=True)
class TextTask:
    """The text encoder before stage C, by predicting a projection of the EffNet latent from captions."""


@dataclasses.dataclass(frozen=True)
class PreviewerTask:
    """The previewer: pictures at a quarter of the image's size from its EffNet latent."""

    train_encoder: bool = False
    """Train the EffNet encoder with it: an autoencoder, whose encoder stage B can start from."""
    latent_noise: float = 0.0
    """Standard deviation of noise that is added to the latent before it is decoded, where 1 is the latent's
    own: what is told apart by less than that is lost, so that stage C need not learn it."""
    outlier_weight: float = 0.0
    """Of the mean square by which the latent exceeds `outlier_limit`, when the encoder is trained."""
    outlier_limit: float = 3.5
    """Absolute value of the latent, in standard deviations, from which on that counts."""

    def __post_init__(self) -> None:
        if not 0 <= self.latent_noise <= 10:
            raise UserError(f"task.latent_noise {self.latent_noise} is outside 0 to 10")
        if not self.outlier_weight >= 0:
            raise UserError(f"task.outlier_weight {self.outlier_weight} must not be negative")
        if not self.outlier_limit > 0:
            raise UserError(f"task.outlier_limit {self.outlier_limit} must be positive")


Task = (
    GuidanceTask | LoraTask | PersonalTask | ControlNetTask | StageCTask | StageBTask | StageATask
    | PreviewerTask | TextTask
)  # fmt: skip

GUIDED = (GuidanceTask, PersonalTask)
"""Tasks with passes of both resolutions."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping (section 12) or Muon, and the exponential moving average of the parameters."""

    algorithm: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the momentum of the hidden layers' matrices; AdamW has the rest. Rates are those
    of AdamW: an update's root mean square is 0.2 of the rate."""
    learning_rate: float = 1e-4
    """After the warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rate does after the warm-up; `cosine` and `linear` fall to `final_fraction` at the end."""
    warmup_steps: int = 1
    """Updates over which the rate rises from 0."""
    final_fraction: float = 0.0
    """Rate at the end, relative to the full one."""
    weight_decay: float = 0.01
    """Decoupled."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    clip_norm: float = 1.0
    """Global gradient norm is clipped to this; 0 does not clip."""
    accumulate: int = 1
    """Parts that the batch is cut into, one after the other on the device."""
    ema_decay: float = 0.999
    """Of the moving average that sampling uses; 0 keeps none. Lower at first: (1 + n)/(10 + n)."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"optimizer.learning_rate {self.learning_rate} must be positive")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps {self.warmup_steps} must be 0 or more")
        if self.accumulate < 1:
            raise UserError(f"optimizer.accumulate {self.accumulate} must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay {self.ema_decay} is outside [0, 1)")
        if not 0 <= self.clip_norm < math.inf:
            raise UserError(f"optimizer.clip_norm {self.clip_norm} must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas {self.betas} must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices."""

    data: int = -1
    """Copies of everything, each with a part of the batch; -1 takes the devices that are left."""
    fsdp: int = 1
    """Parts that parameters and optimizer state are cut into; splits the batch too."""
    tensor: int = 1
    """Parts that layers are cut into along their features."""
    rows: int = 1
    """Parts that the maps of one image are cut into along their height, for very large images."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            size = getattr(self, field.name)
            if size < 1 and not (field.name == "data" and size == -1):
                raise UserError(f"mesh.{field.name} {size} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved."""

    every: int = 500
    """Steps between two checkpoints."""
    keep_last: int = 3
    """Checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints of steps that are multiples of this are kept for ever; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("every", "keep_last"):
            if getattr(self, name) < 1:
                raise UserError(f"checkpoints.{name} {getattr(self, name)} must be 1 or more")
        if self.keep_every < 0:
            raise UserError(f"checkpoints.keep_every {self.keep_every} must be 0 or more")


@dataclasses.dataclass(frozen=True)
class MachinesConfig:
    """Many processes (`jax.distributed`)."""

    distributed: bool = False
    """Join the other processes; TPU pods, SLURM, Open MPI and Kubernetes are detected."""
    coordinator: str = ""
    """HOST:PORT of process 0, where it is not detected."""
    process_id: int = -1
    """Number of this process, where it is not detected."""
    process_count: int = -1
    """Number of processes, where it is not detected."""
    silence: int = 100
    """Seconds without a sign of life after which a process counts as lost, and the others stop."""
    patience: int = 300
    """Seconds to wait for all processes at the start; then those that came end."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"machines.patience {self.patience} must be 1 or more")
        if self.silence < 1:
            raise UserError(f"machines.silence {self.silence} must be 1 or more")
        given = (bool(self.coordinator), self.process_id >= 0, self.process_count > 0)
        if any(given) and not all(given):
            raise UserError(
                "machines.coordinator, machines.process_id and machines.process_count belong together; "
                "give all three or none"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run."""

    task: Task
    """What is trained."""
    model: CascadeConfig
    """Sizes of the networks."""
    data: DataConfig = DataConfig()
    """What it is trained on."""
    output: str = ""
    """Directory of the run, local or gs://…; the same command continues what is there."""
    sources: tuple[str, ...] = ()
    """Converted checkpoints or earlier runs, where weights of the other networks come from; of two that
    have a network, the later one's is taken; what a run only brings along replaces nothing that a source
    itself has. A directory with a tokenizer's files is a source of that."""
    start_from_sources: bool = False
    """Start the trained networks from the sources' weights too, not from fresh ones."""
    random_frozen: bool = False
    """Fill networks that no source has with random weights: for benchmarks and trying things out."""
    steps: int = 15_000
    """Updates in all."""
    seed: int = 0
    """Of initial weights, noise and dropout; data has its own."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Computation, and the weights of frozen networks; trained weights and optimizer are float32."""
    scanned: bool = True
    """Scan over stacked blocks with rematerialisation: a tenth of the memory, faster compilation.
    Small models on CPUs run faster without."""
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    pictures: PicturesConfig = PicturesConfig()
    measures: MeasuresConfig = MeasuresConfig()
    validation: ValidationConfig = ValidationConfig()
    machines: MachinesConfig = MachinesConfig()

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.steps < 1:
            raise UserError(f"steps {self.steps} must be 1 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed {self.seed} is outside 0 to {2**32 - 1}")
        parts = self.optimizer.accumulate
        if self.data.batch_size % parts:
            raise UserError(
                f"data.batch_size {self.data.batch_size} does not divide into optimizer.accumulate {parts} "
                "equal parts"
            )
        guidance = self.model.guidance
        if isinstance(self.task, GuidanceTask) and guidance is None:
            raise UserError("this task trains model.guidance, which is None; give it a configuration")
        if isinstance(self.task, LoraTask) and self.model.lora.text_modules:
            raise UserError(
                "model.lora.text_modules is for personalisation: LoraTask leaves the text encoder as it is"
            )
        if isinstance(self.task, GUIDED) and guidance and self.data.lr_latent not in (0, self.lr_latent):
            raise UserError(
                f"data.lr_latent {self.data.lr_latent} is not the model's: model.guidance.lr_side "
                f"{guidance.lr_side} makes {self.lr_latent}; leave it at 0, or change that"
            )

    @property
    def lr_latent(self) -> int:
        """Side of the square low-resolution latent: the model's, where there is guidance."""
        guidance = self.model.guidance
        if isinstance(self.task, GUIDED) and guidance is not None:
            return lr_latent(1, 1, guidance.lr_side)[0]
        return self.data.lr_latent or LR_LATENT

    @property
    def reading(self) -> DataConfig:
        """How the data are read: `data`, with what the model decides: a size, and control maps."""
        control = self.model.controlnet.kind if isinstance(self.task, ControlNetTask) else ""
        return dataclasses.replace(self.data, lr_latent=self.lr_latent, control=control)


def config_to_json(config: TrainConfig) -> dict[str, Any]:
    """Plain form of a configuration; `task_type` names the class of `task`."""
    return {"task_type": type(config.task).__name__, **to_dict(config)}
