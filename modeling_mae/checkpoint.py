"""Opens every checkpoint, ours and other projects', from a file, a folder or the Hub."""

import contextlib
import copy
import dataclasses
import functools
import json
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import metadata_load
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import CONFIG_NAME, cached_file, logging

from .configuration_mae import MAEConfig
from .errors import UserError, refuse_missing
from .interop.patches import PATCH_LAYERS, fit_patches, sources_of_bands
from .interop.read import BROKEN, HUB_OPTIONS, check_content, read, read_json, read_processor, why_refused
from .interop.state_dicts import Foreign, one_line, refuse_contradictions
from .modeling_mae import EvalNet, MAEForPreTraining, MAEModel, MAEPreTrainedModel
from .segmentation_mae import MAEForSemanticSegmentation


if TYPE_CHECKING:
    from .data.serve.processor import Processing


WEIGHT_FILES = {".pth", ".pt", ".bin", ".ckpt", ".safetensors"}
SAVED_NAMES = ("model.safetensors", "pytorch_model.bin")  # stored next to the config.json that describes them
KINDS = {model.__name__: model for model in (MAEForPreTraining, EvalNet, MAEForSemanticSegmentation, MAEModel)}
LOADING_ERRORS: tuple[type[Exception], ...] = (*BROKEN, pickle.UnpicklingError)

Model = TypeVar("Model", bound=MAEPreTrainedModel)


# Parts of a pre-training model, by the beginnings of their parameters' names. The first that fits counts.
PARTS = {
    "mae.embeddings.patch_embeddings.": "patch projection",
    "decoder.head.": "prediction layer",
    "decoder.": "decoder",
    "mae.layernorm.": "final norm",
    "mae.": "encoder",
}


@dataclass(frozen=True)
class Beginning:
    """A pre-training model before its first update. `new` are the names of its trained parameters that the checkpoint
    does not have, `fitted` of those that it has for other bands or patches. `about` says how many were loaded and how
    many are new."""

    model: MAEForPreTraining
    new: frozenset[str] = frozenset()
    about: str = ""
    fitted: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: MAEForPreTraining, new: set[str], patches: frozenset[str] = frozenset()) -> "Beginning":
        """`patches` are the parameters of other bands or patches, fitted or new."""
        sizes = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
        count = sum(sizes[name] for name in new)
        about = f"{(sum(sizes.values()) - count) / 1e6:.3g} M parameters loaded, "
        about += f"{count / 1e6:.3g} M new ({', '.join(_parts(new))})" if new else "none new"
        fitted = patches - new
        about += f", fitted to the images: {' and '.join(reversed(_parts(fitted)))}" if fitted else ""
        return cls(model, frozenset(new), about, fitted)

    @property
    def new_parts(self) -> list[str]:
        """The parts of the model that have new parameters, in words."""
        return _parts(self.new)


def _parts(names: Iterable[str]) -> list[str]:
    parts = [next(part for start, part in PARTS.items() if name.startswith(start)) for name in sorted(names)]
    return list(dict.fromkeys(part for part in parts if part != "prediction layer" or "decoder" not in parts))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that `open_checkpoint` found. Weights are read only when a model is made.

    `config` is its configuration, changed by the given `fields`. `own_size` is the image size (height, width) in
    pixels that its positions are for. `notes` say what was guessed and what was left out. `is_ours` is False for
    another project's checkpoint. With `patches`, its weights are for the bands and patch size of that configuration,
    and `new_bands` says what becomes of the bands (`fitted`).
    """

    name: str  # a file, a folder or a Hub id
    config: MAEConfig
    own_size: tuple[int, int]
    is_ours: bool
    notes: tuple[str, ...]
    fields: dict[str, Any]
    hub_options: dict[str, Any]
    patches: MAEConfig | None = None
    new_bands: str | None = None

    @property
    def kind(self) -> type[MAEPreTrainedModel]:
        """The class of its model, or MAEModel if it only has an encoder."""
        return KINDS.get((self.config.architectures or [""])[0], MAEModel)

    @property
    def has_decoder(self) -> bool:
        return self.kind is MAEForPreTraining

    @property
    def has_new_parts(self) -> bool:
        """Whether a pre-training has parts that the checkpoint does not have."""
        return not self.has_decoder or self.new_bands == "random"

    @property
    def patch_layers(self) -> frozenset[str]:
        """The parameters of a pre-training that are for other bands or patches than the checkpoint's."""
        return PATCH_LAYERS if self.patches is not None else frozenset()

    def notes_text(self, trains_decoder: bool = False) -> str:
        """The notes as lines for the user. With `trains_decoder`, also whether the decoder is newly initialised."""
        notes = self.notes
        if trains_decoder and not self.has_decoder:
            notes += ("it has no decoder: the decoder is newly initialised",)
        return "".join(f"note       {self.name}: {note}\n" for note in notes)

    @functools.cached_property
    def processor(self) -> Any | None:
        """The image processor stored with the weights, or None.

        Raises:
            UserError: it cannot be read, or it is custom code.
        """
        foreign = None if self.is_ours else self._read()
        if foreign is not None and foreign.processor is not None:
            return foreign.processor
        return None if Path(self.name).is_file() else read_processor(self.name, self.hub_options)

    @property
    def processing(self) -> "Processing":
        """How images are prepared for the model. Empty if there is no image processor.

        Raises:
            UserError: as `processor`, or if its values are invalid.
        """
        from .data.serve.processor import Processing, processing_of  # late: a configuration needs no data

        return Processing() if self.processor is None else processing_of(self.processor, self.name)

    @functools.cached_property
    def card(self) -> dict[str, Any]:
        """The metadata of its model card, or an empty dict."""
        if Path(self.name).is_file():
            return {}
        try:
            path = cached_file(self.name, "README.md", _raise_exceptions_for_missing_entries=False, **self.hub_options)
            return (path and metadata_load(path)) or {}
        except Exception:  # a broken card must not keep anybody from using the weights
            return {}

    @property
    def source(self) -> str:
        """Where the weights come from: a Hub id if known, else the name of the file or folder."""
        path = Path(self.name)
        return self._base or path.resolve().name if path.exists() else self.name

    @property
    def _base(self) -> str | None:
        """The Hub id that the folder's card names as the origin of the weights."""
        base = self.card.get("base_model")
        base = base[0] if isinstance(base, list) and base else base
        return base if isinstance(base, str) else None

    @property
    def on_hub(self) -> bool:
        """Whether `source` is an id on the Hub."""
        return not Path(self.name).exists() or self.source == self._base

    @property
    def license(self) -> str | None:
        """The licence that its card names."""
        value = self.card.get("license")
        value = self.card.get("license_name", value) if value == "other" else value
        return ", ".join(map(str, value)) if isinstance(value, list) else value and str(value)

    def encoder(self, config: MAEConfig | None = None) -> MAEModel:
        """The encoder alone. Its attention pooling is None if nothing has trained it yet.

        Args:
            config: replaces the checkpoint's. Positions are interpolated if its image size differs.

        Raises:
            UserError: the weights cannot be read, or they do not fit the configuration.
        """
        encoder, info = self._load(MAEModel, config)
        if any(name.startswith("pooler.") for name in info["missing_keys"]):
            encoder.pooler = None
        return encoder

    def classifier(self, config: MAEConfig | None = None, new_head: bool = False) -> EvalNet:
        """The classifier. With `new_head`, or if the checkpoint has no head, its head is newly initialised.

        Arguments and errors as for `encoder`.
        """
        return self.trained(EvalNet, config, new_head)

    def trained(self, kind: type[Model], config: MAEConfig | None = None, new_head: bool = False) -> Model:
        """The trained model as the class `kind`. Arguments and errors as for `classifier`."""
        return self._load(kind, config, ignore_mismatched_sizes=new_head)[0]

    def beginning(self, config: MAEConfig | None = None) -> Beginning:
        """Encoder and decoder, newly initialised where the checkpoint has none, and what is new. Arguments and errors
        as for `encoder`."""
        model, info = self._load(MAEForPreTraining, config)
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        return Beginning.of(model, trained & set(info["missing_keys"]), self.patch_layers)

    def _with_own_patches(self, config: MAEConfig) -> MAEConfig:
        """`config` with the bands and patches of the weights, and the same grid of patches."""
        if self.patches is None:
            return config
        own = copy.deepcopy(config)
        own.num_channels, own.patch_size = self.patches.num_channels, self.patches.patch_size
        own.image_size = [n * side for n, side in zip(config.grid, own.patch_height_width, strict=True)]
        return own

    @property
    def sources_of_bands(self) -> list[int | None]:
        """For each band of the images, which band of the weights it is, or None."""
        old = (self.patches or self.config).num_channels
        return sources_of_bands(self.new_bands, old, self.config.num_channels)

    def fitted(self, fields: dict[str, Any], new_bands: str | None = None) -> "Checkpoint":
        """The checkpoint for other patches, by the `fields` num_channels, patch_size and image_size of its
        configuration. `new_bands` as in `fit_patches`.

        Raises:
            UserError: the fields do not work together, or `new_bands` does not fit them.
        """
        config = copy.deepcopy(self.config)
        for name, value in fields.items():
            setattr(config, name, value)
        _checked(self.name, config.validate)
        sizes = (config.num_channels, config.patch_height_width)
        if new_bands is None and sizes == (self.config.num_channels, self.config.patch_height_width):
            return open_checkpoint(self.name, {**self.fields, **fields}, **self.hub_options)  # nothing to fit
        if config.num_channels != self.config.num_channels and new_bands is None:
            raise UserError(
                f"{self.name}: num_channels={config.num_channels}, but its weights have {self.config.num_channels}: "
                "give --new_bands mean, random or rgb:3,2,1 to fit them"
            )
        sources_of_bands(new_bands, self.config.num_channels, config.num_channels)  # refuses what does not fit
        return dataclasses.replace(self, config=config, patches=self.config, new_bands=new_bands)

    def model(self) -> MAEPreTrainedModel:
        """The model of class `kind`, in its file's precision and in eval mode. Errors as for `encoder`."""
        return self._load(self.kind, None, dtype="auto")[0].eval()

    def _load(self, kind: type[Model], config: MAEConfig | None, **options) -> tuple[Model, dict[str, Any]]:
        """(the model, transformers' loading report, in which new layers of the patches are missing keys)."""
        fitted = copy.deepcopy(config or self.config)
        config = self._with_own_patches(fitted)
        options = {"dtype": torch.float32, "output_loading_info": True, **self.hub_options, **options}
        try:
            if self.is_ours:
                load = functools.partial(kind.from_pretrained, self.name, config=config, **options)
            else:
                foreign = self._read()
                size, config.image_size = config.image_size, foreign.config.image_size
                state = foreign.state_dict
                load = functools.partial(
                    kind.from_pretrained, None, config=config, state_dict=state, image_size=size, **options
                )
            with _quiet(kind is MAEForPreTraining and self.kind is not kind):
                model, report = load()
        except UserError:
            raise
        except LOADING_ERRORS as error:
            is_pickle = isinstance(error, pickle.UnpicklingError)
            reason = why_refused(error) if is_pickle else one_line(error)[:300] or type(error).__name__
            if "ignore_mismatched_sizes" in reason:
                reason = _misfit(load) or reason
            raise UserError(f"checkpoint {self.name!r} cannot be loaded: {reason}") from error
        for name, values in model.state_dict().items():
            if not values.isfinite().all():
                raise UserError(
                    f"checkpoint {self.name!r} has values in {name} that are not finite: its training failed, "
                    "so take an earlier checkpoint"
                )
        if self.patches is not None:
            missing = set(report["missing_keys"])
            fit_patches(model, fitted, self.new_bands, missing)
            report["missing_keys"] = missing
        return model, report

    def _read(self) -> Foreign:
        return _read_foreign(self.name, self.fields, self.hub_options)


def open_checkpoint(name: str | Path, fields: dict[str, Any] | None = None, **hub_options) -> Checkpoint:
    """Any checkpoint: ours, transformers' MAE and ViT, timm's, the official code's, CrossMAE's and MAE-code's.

    Args:
        name: a file, a folder or a Hub id.
        fields: fields of MAEConfig that replace the checkpoint's. Also ``prefix``, which says where in a file the
            weights are.
        hub_options: see HUB_OPTIONS.

    Raises:
        UserError: the checkpoint does not exist or cannot be read, or the fields do not fit it.
    """
    name, fields = str(name), dict(fields or {})
    path = Path(name)
    # Not a Hub id. Asking the Hub would take long, and its answer would mislead.
    if path.suffix in WEIGHT_FILES and not path.exists():
        raise UserError(f"{name} does not exist: give a file, a folder with a config.json, or a Hub id")
    refuse_missing(name)
    if path.name in SAVED_NAMES and (path.parent / CONFIG_NAME).is_file():
        name, path = str(path.parent), path.parent
    hub_options = {key: value for key, value in hub_options.items() if value is not None}
    if unknown := hub_options.keys() - set(HUB_OPTIONS):
        raise TypeError(f"open_checkpoint has no arguments {', '.join(unknown)}")
    if not path.is_file() and _is_ours(name, hub_options):
        fields.pop("prefix", None)
        config, own_size = _our_config(name, fields, hub_options)
        return Checkpoint(name, config, own_size, True, (), fields, hub_options)
    changed = path.stat().st_mtime_ns if path.is_file() else _newest(path) if path.is_dir() else None
    config, notes = _foreign_config(name, json.dumps(fields), json.dumps(hub_options), changed)
    config, own_size = copy.deepcopy(config), config.image_height_width
    if "image_size" in fields:
        config.image_size = fields["image_size"]
        _checked(name, config.validate)
    return Checkpoint(name, config, own_size, False, notes, fields, hub_options)


def _is_ours(name: str, hub_options: dict) -> bool:
    """Whether the folder or repository has a config.json of this project.

    Raises:
        UserError: it has no model configuration.
    """
    content = read_json(name, CONFIG_NAME, hub_options)
    kind = (content or {}).get("model_type", (content or {}).get("architecture"))
    if content is None or kind is None:
        inside = [repr(str(file.parent)) for file in sorted(Path(name).glob("*/config.json"))]
        remedy = " or ".join(inside) or "the output_dir of a run, or a Hub id"
        raise UserError(f"checkpoint {name!r} has no config.json of a model: give {remedy}")
    if kind == MAEConfig.model_type:
        check_content(name, content)
    return kind == MAEConfig.model_type


def _our_config(name: str, fields: dict, hub_options: dict) -> tuple[MAEConfig, tuple[int, int]]:
    """(the configuration of our checkpoint, changed by `fields`; the image size (height, width) of its positions)."""
    own = _checked(name, lambda: MAEConfig.from_pretrained(name, **hub_options))
    told = own.to_dict()
    if (own.architectures or [""])[0] != MAEForPreTraining.__name__:  # without a decoder, fields cannot contradict it
        told = {field: value for field, value in told.items() if not field.startswith("decoder_")}
    refuse_contradictions(f"checkpoint {name!r}", told, fields)
    config = _checked(name, lambda: MAEConfig.from_pretrained(name, **hub_options, **fields))
    _checked(name, config.validate)  # from_pretrained sets the fields after its checks
    return config, own.image_height_width


def _checked(name: str, make):
    """Calls ``make()`` and turns its errors into a UserError about the configuration."""
    try:
        return make()
    # transformers does not check the types in a config.json, so a wrong one raises any kind of error.
    except BROKEN as error:
        if isinstance(error, UserError):
            raise
        reason = one_line(error.__cause__ or error)[:400]  # type: ignore[arg-type]
        if not isinstance(error, (ValueError, OSError, StrictDataclassError)):
            reason = f"the configuration of {name!r} does not work: {reason}"
        raise UserError(f"checkpoint {name!r}: {reason}") from error


@functools.lru_cache(maxsize=8)
def _foreign_config(
    name: str, fields: str, hub_options: str, changed: int | None
) -> tuple[MAEConfig, tuple[str, ...]]:
    """The configuration and the notes of another project's checkpoint, cached because reading takes seconds. `fields`
    and `hub_options` are JSON. `changed` is its time of writing."""
    foreign = _read_foreign(name, json.loads(fields), json.loads(hub_options))
    notes = tuple(foreign.notes)
    if Path(name).is_file() and foreign.processor is not None:
        notes += ("how images are normalised is not in the file: assuming ImageNet's mean and deviation",)
    return foreign.config, notes


def _read_foreign(name: str, fields: dict[str, Any], hub_options: dict[str, Any]) -> Foreign:
    with _quiet():
        foreign = read(name, fields.get("image_size"), {**fields, **hub_options})
    if foreign is None:
        raise UserError(f"checkpoint {name!r} cannot be read: give a file, a folder with a config.json, or a Hub id")
    return foreign


def _newest(folder: Path) -> int:
    return max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)


def _misfit(load) -> str | None:
    """Names the first tensor whose shape does not fit the configuration. None if the model cannot be made."""
    try:
        with _quiet():
            _, info = load(ignore_mismatched_sizes=True)
    except BROKEN:
        return None
    tensor, own, wanted = min(info["mismatched_keys"])
    return (
        f"{tensor} is {_times(own)} in its file and {_times(wanted)} by its configuration: give fields that fit, or "
        "fix its config.json"
    )


def _times(shape) -> str:
    return " x ".join(map(str, shape))


@contextlib.contextmanager
def _quiet(reports: bool = True) -> Iterator[None]:
    """Silences transformers' progress bars, and with `reports` also its report of missing weights."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    if reports:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
