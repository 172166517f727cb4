"""What a script tells the report of its run: a small object for each subject."""

from dataclasses import dataclass, field
from typing import Any

from ..configuration_mae import MAEConfig
from .problem import Problem, problem_named


@dataclass(frozen=True)
class Base:
    """The weights that a training began with: where they come from, and their licence where it is known."""

    source: str
    license: str | None = None
    on_hub: bool = False  # whether `source` is an id on the Hub

    def __str__(self) -> str:
        where = f"[{self.source}](https://huggingface.co/{self.source})" if self.on_hub else f"`{self.source}`"
        licence = f"Their licence is {self.license}." if self.license else "Their licence is not known here."
        return f"The training began with the weights of {where}. {licence}"


@dataclass(frozen=True)
class Identity:
    """What a card calls the model. Users load it from `repo_id`, None if it is only in its folder. None for `license`
    names none: only the owner of the weights can say it. `base` are the weights that it began with, if there are."""

    name: str
    repo_id: str | None = None
    license: str | None = None
    base: Base | None = None


@dataclass(frozen=True)
class TrainingLog:
    """`log` has one entry for each reading of the loss and for each evaluation."""

    log: list[dict[str, Any]]
    updates: int
    updates_per_epoch: int


@dataclass(frozen=True)
class DataFacts:
    """The images of a run. `name` is for people, `dataset_id` for the Hub. `split` is what was evaluated on. `skipped`
    images could not be decoded, `incomplete` ones had missing values."""

    name: str
    dataset_id: str
    images: int
    split: str | None = None
    skipped: int = 0
    incomplete: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json says of them."""
        return {"data": self.name, **{name: value for name, value in vars(self).items() if name != "name"}}


@dataclass(frozen=True)
class LabelledFacts(DataFacts):
    """The images that classifiers are evaluated on, and what their labels mean."""

    class_names: list[str] = field(default_factory=list)
    problem: Problem = field(default_factory=lambda: problem_named(None))

    @property
    def summary(self) -> dict[str, Any]:
        return super().summary | {"problem": self.problem.problem_type}


@dataclass(frozen=True)
class ModelFacts:
    """`architecture` is a line for people, `depth` the number of the encoder's blocks. `normalised`: patches are
    normalised before they are predicted."""

    architecture: str
    depth: int | None = None
    normalised: bool = True

    @classmethod
    def of(cls, config: MAEConfig, parameters: int) -> "ModelFacts":
        """Those of a model with so many `parameters`."""
        patch, image = ("x".join(map(str, size)) for size in (config.patch_height_width, config.image_height_width))
        decoder = "decoder" if config.decoder_type == "self" else f"{config.decoder_type} decoder"
        architecture = (
            f"{config.num_hidden_layers} x {config.hidden_size} encoder, {config.decoder_num_hidden_layers} x "
            f"{config.decoder_hidden_size} {decoder}, {parameters / 1e6:.3g} M parameters, patches of {patch} in "
            f"{image} pixels, {config.num_channels} channel{'s' if config.num_channels > 1 else ''}"
        )
        return cls(architecture, config.num_hidden_layers, config.norm_pix_loss)


@dataclass(frozen=True)
class MachineFacts:
    """`waited` is the part of the time, 0..1, in which the training waited for images."""

    seconds: float
    processes: int
    device_type: str
    precision: str
    waited: float | None = None


@dataclass(frozen=True)
class Looks:
    """How good a pre-trained model looks. `knn` is the accuracy in 0..1 of each kind of features, with `k` neighbours;
    empty without a k-NN evaluation. `picture` and `neighbours` say how reconstruction.png and neighbours.png, which
    are there already, were made."""

    k: int
    knn: dict[str, float] = field(default_factory=dict)
    picture: str = ""
    neighbours: str = ""
