"""What a script tells the report about its run: a small object per subject."""

from dataclasses import dataclass, field
from typing import Any

from ..configuration_mae import MAEConfig
from ..words import counted
from .problem import Problem, problem_named


@dataclass(frozen=True)
class Base:
    """The weights that a training began with: their source, and their licence if known."""

    source: str
    license: str | None = None
    on_hub: bool = False  # whether `source` is an id on the Hub

    def __str__(self) -> str:
        where = f"[{self.source}](https://huggingface.co/{self.source})" if self.on_hub else f"`{self.source}`"
        licence = f"Their licence is {self.license}." if self.license else "Their licence is unknown."
        return f"The training began with the weights of {where}. {licence}"


@dataclass(frozen=True)
class Identity:
    """How a card names the model. Users load it from `repo_id`, None if it is only in its folder. With `license` None
    the card names no licence, because only the owner of the weights can choose one. `base` are the weights that the
    training began with, or None."""

    name: str
    repo_id: str | None = None
    license: str | None = None
    base: Base | None = None


@dataclass(frozen=True)
class TrainingLog:
    """`log` has an entry for each logged loss and each evaluation."""

    log: list[dict[str, Any]]
    updates: int
    updates_per_epoch: int


@dataclass(frozen=True)
class DataFacts:
    """The images of a run. `name` is for readers, `dataset_id` for the Hub. `split` is the evaluation split. `skipped`
    images could not be decoded, `incomplete` ones had missing values."""

    name: str
    dataset_id: str
    images: int
    split: str | None = None
    skipped: int = 0
    incomplete: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """Their entries in summary.json."""
        return {"data": self.name, **{name: value for name, value in vars(self).items() if name != "name"}}


@dataclass(frozen=True)
class LabelledFacts(DataFacts):
    """The images that classifiers are evaluated on, and the meaning of their labels."""

    class_names: list[str] = field(default_factory=list)
    problem: Problem = field(default_factory=lambda: problem_named(None))

    @property
    def summary(self) -> dict[str, Any]:
        return super().summary | {"problem": self.problem.problem_type}


@dataclass(frozen=True)
class ModelFacts:
    """`architecture` is one line of text, `depth` the number of encoder blocks. `normalised`: the targets are
    normalised patches."""

    architecture: str
    depth: int | None = None
    normalised: bool = True

    @classmethod
    def of(cls, config: MAEConfig, parameters: int, tuned: str = "") -> "ModelFacts":
        """The facts of a model with this `config` and number of `parameters`. `tuned` says which of them train, empty
        for all."""
        patch, image = ("x".join(map(str, size)) for size in (config.patch_height_width, config.image_height_width))
        decoder = "decoder" if config.decoder_type == "self" else f"{config.decoder_type} decoder"
        architecture = (
            f"{config.num_hidden_layers} x {config.hidden_size} encoder, {config.decoder_num_hidden_layers} x "
            f"{config.decoder_hidden_size} {decoder}, {parameters / 1e6:.3g} M parameters, patches of {patch} in "
            f"{image} pixels, {counted(config.num_channels, 'channel')}"
            f"{', trained: ' * bool(tuned)}{tuned}"
        )
        return cls(architecture, config.num_hidden_layers, config.norm_pix_loss)


@dataclass(frozen=True)
class MachineFacts:
    """`waited` is the share of the time, 0..1, in which the training waited for images."""

    seconds: float
    processes: int
    device_type: str
    precision: str
    waited: float | None = None


@dataclass(frozen=True)
class FeatureFacts:
    """The evaluation of a pre-trained model. `knn` is the k-NN accuracy in 0..1 of each kind of features, or another
    metric if there is a `problem`, with `k` neighbours; empty if it was not evaluated. `picture` and `neighbours`
    describe reconstruction.png and neighbours.png, which exist already."""

    k: int
    knn: dict[str, float] = field(default_factory=dict)
    picture: str = ""
    neighbours: str = ""
    problem: str | None = None
