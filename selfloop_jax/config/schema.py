"""Every field of a config: name, type, default, meaning with its unit, rule.

A section is a frozen dataclass and `Config` nests them. Where a default follows a paper, the
meaning names it; a default without a paper is ours. Names that come from a table elsewhere in the
package (data source, pool rule, process, sampler, network, metric, study) have no rule here: the
owner of the table checks them.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from selfloop_jax.config.fields import (
    BELOW_ONE,
    INSIDE,
    POSITIVE,
    SHARE,
    at_least,
    choices,
    each,
    field,
    leaves,
    path,
    up_to,
)


@dataclass(frozen=True)
class BiasConfig:
    """P(group | class) of the real training images."""

    kind: str = field(
        "unbiased",
        "natural: as the images come; unbiased: all groups alike; rho and per_class: as below",
        choices("natural", "unbiased", "rho", "per_class"),
    )
    rho: float = field(
        0.9, "rho: probability of a class's own group; the others share the rest", SHARE
    )
    per_class: tuple[float | tuple[float, ...], ...] = field(
        (),
        "per_class: P(group | class), a row per class or one for all; of two groups, P(second)",
    )


@dataclass(frozen=True)
class FolderConfig:
    """Sources `folder`, `parquet` and `webdataset`."""

    dir: str = path("folder with train/ and test/, or with Parquet files or tar shards of them")
    image_column: str = field("image", "parquet: column with the images")
    label_column: str = field("label", "column of the tables with the class")
    group_column: str = field("group", "column of the tables with the group")
    ignore: tuple[str, ...] = field(
        (), "patterns of paths in it, such as notes/*.json, that are left alone"
    )


@dataclass(frozen=True)
class IdxConfig:
    """Source `idx`: files as MNIST has them, such as Fashion-MNIST, KMNIST, EMNIST and USPS."""

    dir: str = path("folder of the four files, gzipped or not")
    prefix: str = field("", "of the files' names, where the folder has several data sets")


@dataclass(frozen=True)
class TfdsConfig:
    """Sources that TFDS prepares: `mnist`, `cifar20`, `cifar100` and `tfds:<name>`."""

    dir: str = path("folder of prepared data; '': where TFDS keeps it")
    checksums: str = path("mnist, cifar*: checksums in place of the official ones (stand-in data)")
    label_feature: str = field("label", "tfds:<name>: dotted path of the label")
    group_feature: str = field("", "tfds:<name>: dotted path of the group; '': no groups")


@dataclass(frozen=True)
class HardImageNetConfig:
    """Source `hardimagenet` (Moayeri et al. 2022)."""

    images_dir: str = path("folder with {train,val}/<wnid>/ of images")
    masks_dir: str = path("folder with {train,val}/ of masks; '': none")
    meta_dir: str = path("folder of the published pickles: class names and ranking")
    group: str = field(
        "rank",
        "bands by published rank of the spurious cue, or by the object's share of the image",
        choices("rank", "mask_area"),
    )
    bands: int = field(2, "groups that ranks or mask areas are cut into", at_least(2))
    holdout: int = field(40, "rank: test images per class and band", POSITIVE)


@dataclass(frozen=True)
class DataConfig:
    """The real images."""

    source: str = field(
        "digits",
        "digits | mnist5k | mnist | cifar20 | cifar100 | hardimagenet | folder | idx | parquet | "
        "webdataset | tfds:<name>",
    )
    image_size: int = field(8, "side of an image, pixels", POSITIVE)
    colorize: str = field(
        "two_colour",
        "colours, and so groups, for gray images; none: images and groups as they come",
    )
    bias: BiasConfig = BiasConfig()
    train_size: int = field(
        0, "training images after subsampling; 0: all that the bias leaves", at_least(0)
    )
    split_seed: int = field(
        -1,
        "decides which training images stay; seeds in a row get disjoint ones as far as there are "
        "enough; -1: the run's seed",
        at_least(-1),
    )
    validation_share: float = field(
        0.1, "of the training images, where the source has no such split", SHARE
    )
    reserve_share: float = field(
        0.2, "likewise: real images for pool.rule = fresh and for controls", SHARE
    )
    placement: str = field(
        "device", "where the pool lies while training", choices("device", "host")
    )
    archive_dir: str = path(
        "mnist, cifar*: folder of the official files, packed or not, also as torchvision keeps "
        "them; '': TFDS downloads them"
    )
    on_bad_image: str = field(
        "refuse",
        "hardimagenet, folder, parquet, webdataset: unreadable images end the run, or are left out",
        choices("refuse", "skip"),
    )
    cache_dir: str = path("folder of decoded images; '': ~/.cache/selfloop_jax_data")
    folder: FolderConfig = FolderConfig()
    idx: IdxConfig = IdxConfig()
    tfds: TfdsConfig = TfdsConfig()
    hardimagenet: HardImageNetConfig = HardImageNetConfig()


@dataclass(frozen=True)
class PoolConfig:
    """The training set of a generation g > 0; generation 0 trains on real images alone."""

    rule: str = field("accumulate", "how real and generated images make the pool of a generation")
    budget: int = field(0, "accumulate_subsample: images kept", at_least(0))
    alpha: float = field(0.5, "substitute: probability that a real image is replaced", SHARE)
    match_group: bool = field(False, "substitute: replace an image only by one of its group")
    n_real: int = field(
        0, "fresh: real images, in every generation others of the reserve", at_least(0)
    )
    n_generated: int = field(0, "fresh: images of the latest generator", at_least(0))


@dataclass(frozen=True)
class LoopConfig:
    """The self-consuming loop."""

    generations: int = field(4, "generations, generation 0 included", POSITIVE)
    label_source: str = field(
        "requested",
        "label of a generated image: requested, or by the previous or first classifier",
        choices("requested", "previous", "frozen"),
    )
    group_source: str = field(
        "oracle",
        "group of a generated image: its colour, the requested one, or the annotator's",
        choices("oracle", "requested", "annotator"),
    )
    branch_from: str = field("", "workdir of a run whose generation 0 this run starts from")
    control: str = field(
        "none", "a control trains classifiers alone, on real in place of generated images"
    )
    control_of: str = field(
        "", "oracle_resample: workdir of the run whose generated images are replaced"
    )


@dataclass(frozen=True)
class LaterConfig:
    """How a network is trained in the generations from 1 on."""

    start: str = field(
        "scratch", "new weights, or those of the generation before", choices("scratch", "previous")
    )
    steps: int = field(2000, "training steps", POSITIVE)
    learning_rate: float = field(1e-3, "peak learning rate", POSITIVE)


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained: AdamW with warm-up, cosine decay and clipped gradients."""

    batch: int = field(128, "images per step over all devices", POSITIVE)
    steps: int = field(1000, "training steps of generation 0", POSITIVE)
    learning_rate: float = field(1e-3, "peak learning rate of generation 0", POSITIVE)
    warmup_steps: int = field(50, "steps of linear warm-up", POSITIVE)
    weight_decay: float = field(0.0, "weight decay of AdamW", at_least(0))
    clip_norm: float = field(1.0, "largest global norm of a gradient", POSITIVE)
    adam_b2: float = field(0.99, "decay of Adam's second moment", BELOW_ONE)
    ema_decay: float = field(
        0.0,
        "decay of the averaged weights and BatchNorm statistics, which are used; 0: no averaging",
        BELOW_ONE,
    )


@dataclass(frozen=True)
class UNetConfig:
    """The network of the generator."""

    channels: int = field(64, "channels of the first level", POSITIVE)
    multipliers: tuple[int, ...] = field(
        (1, 2), "channels of each level, times `channels`", each(POSITIVE, least=1)
    )
    blocks: int = field(1, "residual blocks per level", POSITIVE)
    attention: tuple[int, ...] = field(
        (), "sides of the feature maps with self-attention, pixels", each(POSITIVE)
    )
    heads: int = field(1, "attention heads", POSITIVE)
    dropout: float = field(0.0, "dropout probability in residual blocks", BELOW_ONE)
    stem: int = field(1, "stem x stem pixels become channels before the first layer", POSITIVE)
    remat: bool = field(False, "recompute activations in the backward pass: less memory, more time")
    scale_shift: bool = field(
        True,
        "scale and shift by the embedding (Dhariwal and Nichol 2021); else add it",
    )


@dataclass(frozen=True)
class DdpmConfig:
    """Process `ddpm`."""

    schedule: str = field(
        "cosine",
        "noise schedule (Nichol and Dhariwal 2021); linear: Ho et al. 2020",
        choices("linear", "cosine"),
    )
    timesteps: int = field(1000, "noise levels (Ho et al. 2020)", POSITIVE)
    prediction: str = field(
        "v",
        "network output (Salimans and Ho 2022); eps: Ho et al. 2020",
        choices("eps", "v"),
    )


@dataclass(frozen=True)
class EdmConfig:
    """Process `edm`; defaults are those of Karras et al. 2022, table 1, but for `sigma_data`."""

    sigma_data: float = field(
        0.0,
        "scale of the pixels in [-1, 1]; 0: root mean square of generation 0's training images",
        at_least(0),
    )
    p_mean: float = field(-1.2, "mean of ln sigma in training")
    p_std: float = field(1.2, "standard deviation of ln sigma in training", POSITIVE)
    sigma_min: float = field(0.002, "smallest noise level in sampling", POSITIVE)
    sigma_max: float = field(80.0, "largest noise level in sampling", POSITIVE)
    rho: float = field(7.0, "spacing of noise levels in sampling", POSITIVE)


@dataclass(frozen=True)
class FlipConfig:
    """Augmentation of the generator's training images: no more than it should learn to generate."""

    flip: bool = field(False, "mirror left and right, with probability one half")


@dataclass(frozen=True)
class AugmentConfig(FlipConfig):
    """Augmentation of a classifier's training images."""

    crop: int = field(0, "padding of a random crop, pixels", at_least(0))
    brightness: float = field(0.0, "jitter x: factors from 1 - x to 1 + x", SHARE)
    contrast: float = field(0.0, "jitter x: factors from 1 - x to 1 + x", SHARE)
    saturation: float = field(0.0, "jitter x: factors from 1 - x to 1 + x", SHARE)
    hue: float = field(0.0, "jitter x: from -x to x turns of the colour circle", up_to(0.5))


@dataclass(frozen=True)
class DiffusionConfig(TrainingConfig):
    """The generator."""

    steps: int = field(2000, "training steps of generation 0", POSITIVE)
    ema_decay: float = field(
        0.999, "decay of the averaged weights, which sample; 0: no averaging", BELOW_ONE
    )
    microbatches: int = field(
        1, "parts of a batch that a device takes one after the other: less memory", POSITIVE
    )
    process: str = field("edm", "noise process: ddpm (Ho et al. 2020) | edm (Karras et al. 2022)")
    condition_on: str = field(
        "label",
        "condition: the class, or class and group",
        choices("label", "label_group"),
    )
    label_dropout: float = field(
        0.1, "probability of no condition in training (Ho and Salimans 2022)", SHARE
    )
    unet: UNetConfig = UNetConfig()
    ddpm: DdpmConfig = DdpmConfig()
    edm: EdmConfig = EdmConfig()
    augment: FlipConfig = FlipConfig()
    later: LaterConfig = LaterConfig()


@dataclass(frozen=True)
class SampleConfig:
    """The images that a generator makes."""

    count: int = field(900, "images per generation", POSITIVE)
    request: str = field(
        "real",
        "classes and groups: all alike, or in the proportions of the pool or the real images",
        choices("uniform", "pool", "real"),
    )
    sampler: str = field(
        "multistep",
        "multistep (arXiv 2211.01095, third order); ddpm: ddim | ancestral; edm: euler | heun "
        "(Karras et al. 2022, algorithm 1)",
    )
    steps: int = field(
        15,
        "sampler steps; with multistep the fewest that keep the variance to within 1 %",
        POSITIVE,
    )
    guidance: float = field(
        0.0,
        "w of (1 + w) conditional - w unconditional (Ho and Salimans 2022); lambda = 1 / (1 + w) "
        "in arXiv 2307.01850",
        at_least(-1),
    )
    temperature: float = field(
        1.0,
        "factor on the initial noise; lambda = temperature^2 for Gaussian images; ancestral: 1",
        POSITIVE,
    )
    clip: bool = field(True, "keep every estimate of the image in [-1, 1]")
    batch_per_device: int = field(150, "images at a time on one device", POSITIVE)


@dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """An image classifier: of classes or, as annotator, of groups."""

    network: str = field("resnet", "resnet | resnet18 | resnet50 | vgg11 | vgg16 | lenet")
    stages: tuple[int, ...] = field(
        (2, 2, 2, 2),
        "resnet: basic blocks per stage; 2, 2, 2, 2: ResNet-18 (He et al. 2016)",
        each(POSITIVE, least=1),
    )
    width: int = field(64, "channels of the first stage", POSITIVE)
    layout: str = field(
        "small",
        "stem of ResNet, head of VGG: for small images, or torchvision's",
        choices("small", "imagenet"),
    )
    normalize: str = field(
        "unit",
        "pixels to [-1, 1], or by ImageNet's mean and deviation",
        choices("unit", "imagenet"),
    )
    init_from: str = path("weights with torchvision's names, .safetensors or .pth; '': random")
    freeze: bool = field(False, "train the head alone; statistics of BatchNorm stay")
    augment: AugmentConfig = AugmentConfig()


@dataclass(frozen=True)
class LoopClassifierConfig(ClassifierConfig):
    """The classifier of classes, which every generation trains."""

    later: LaterConfig = LaterConfig(steps=1000)


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured of a generation."""

    split: str = field(
        "test",
        "real images that are measured on; tune on validation alone",
        choices("test", "validation"),
    )
    generated_only: str = field(
        "every",
        "generations whose classification accuracy score is measured",
        choices("never", "first", "every"),
    )
    trainings: int = field(
        1,
        "classifiers trained on every pool, over which fairness is averaged; the first one labels",
        POSITIVE,
    )
    features: str = field(
        "classifier",
        "features that fidelity compares: classifier (that of generation 0), efficientnet_lite0, "
        "inception or another network of measure/features.py",
    )
    features_weights: str = path("inception: the file of its weights")
    batch: int = field(600, "images at a time over all devices", POSITIVE)
    level: float = field(0.95, "confidence level of intervals", INSIDE)
    replicates: int = field(1000, "permutations of a null, simulations of an interval", POSITIVE)


@dataclass(frozen=True)
class VerdictConfig:
    """What a claim about the loop rests on; to be fixed before the runs are made."""

    control: str = field(
        "by_rule",
        "control that loops are compared with; by_rule: no_synthetic, or fresh_real where a pool "
        "rule puts generated images in the place of real ones",
    )
    metrics: tuple[str, ...] = field(
        ("equal_opportunity_difference_mean",),
        "measures of bias; m of them need 2**seeds >= 40 m to be decided",
    )
    margin: float = field(
        0.0, "mean contrasts nearer to 0 count as no change; 0: no such claim", at_least(0)
    )
    relative_margin: bool = field(
        False, "the margin is a share of each seed's bias in generation 0, not a number"
    )
    alpha: float = field(0.05, "family-wise error rate", INSIDE)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of a training that is under way."""

    interval_steps: int = field(
        500, "steps between two, and so the most that a stop can cost", POSITIVE
    )
    interval_minutes: float = field(
        10.0, "minutes between two, where that many steps take longer", POSITIVE
    )
    keep: int = field(1, "checkpoints kept of a network", POSITIVE)


@dataclass(frozen=True)
class ParallelConfig:
    """Processes, devices, and what decides bits besides."""

    processes: int = field(
        0,
        "processes of the run, each with its own devices; 0: as many as were started",
        at_least(0),
    )
    cpu_devices: int = field(2, "devices of a process on a CPU", POSITIVE)
    nproc: int = field(2, "threads of the CPU backend", POSITIVE)
    matmul_precision: str = field(
        "default",
        "of float32 products; default: TF32 on NVIDIA, one pass of bfloat16 on a TPU",
        choices("default", "high", "highest"),
    )
    steps_per_dispatch: int = field(
        0,
        "training steps in one program; 0: one on a CPU, elsewhere the most up to ten that divide "
        "all numbers of steps",
        at_least(0),
    )
    deterministic: bool = field(True, "refuse kernels on a GPU whose results vary")
    precision: str = field(
        "float32",
        "of activations; weights, statistics, losses and sums stay float32",
        choices("float32", "bfloat16"),
    )


@dataclass(frozen=True)
class LogConfig:
    """Progress."""

    every_steps: int = field(50, "steps between two lines of metrics.jsonl", POSITIVE)
    tensorboard: bool = field(False, "write event files for TensorBoard as well")


@dataclass(frozen=True)
class ReportConfig:
    """The HTML report."""

    enabled: bool = field(True, "write it at the end of a run")


@dataclass(frozen=True)
class Config:
    """A run."""

    study: str = field("self_consuming", "which experiment")
    seed: int = field(0, "decides every random number", up_to(2**32 - 1))
    data: DataConfig = DataConfig()
    pool: PoolConfig = PoolConfig()
    loop: LoopConfig = LoopConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sample: SampleConfig = SampleConfig()
    classifier: LoopClassifierConfig = LoopClassifierConfig()
    annotator: ClassifierConfig = ClassifierConfig()
    measure: MeasureConfig = MeasureConfig()
    verdict: VerdictConfig = VerdictConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    log: LogConfig = LogConfig()
    report: ReportConfig = ReportConfig()

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON, as config.json holds it; tuples are lists."""
        # Through JSON, so that it equals what is read from a file.
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


# Fields that say where something lies, whose content the inputs of a run have by its digest.
PATHS = tuple(name for name, _, declared in leaves(Config()) if "path" in declared.metadata)
