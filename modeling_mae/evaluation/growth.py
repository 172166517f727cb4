"""Measures features during pre-training: k-NN accuracy and effective rank, on a sample of the images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.serve.images import Images
from ..data.serve.masked import MaskedImages
from ..modeling_mae import MAEForPreTraining, MAEModel
from ..training.sharded import whole_weights
from ..training.state import History
from ..training.trials import unchanged_random_states
from .dense import dense_metrics, tokens_of
from .features import RAW_PIXELS_LIMIT, features_of, knn_metrics
from .reader import Reader


TRAIN_SAMPLE, EVAL_SAMPLE = 20_000, 5_000  # images, evenly spaced: enough for a curve, and quick


def effective_rank(features: torch.Tensor) -> float:
    """RankMe of ``features (images, width)``: how many directions they use, from 1 to the width (arXiv 2210.02885).

    It is exp(entropy) of the singular values' shares. It needs no labels. Collapsed features have a low rank.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def describe_features(values: dict[str, float]) -> str:
    """The measurements of `FeatureGrowth` in one line."""
    figures = []
    for name, value in values.items():
        number = f"{100 * value:.1f} %" if name.startswith("knn") and value <= 1 else f"{value:.1f}"
        if name not in ("knn_images", "knn_patches"):
            figures.append(f"{name.replace('_', ' ').replace('knn', 'k-NN')} {number}")
    return "  ".join(figures)


class FeatureGrowth:
    """Measures the features of a model during training, always on the same images.

    k-NN compares the images of `evaluation` with those of `train`; if they have masks, their patches with those of
    `bank`. Without labels `evaluation` is None, and only the rank is measured. Only the main process gets the values.
    """

    def __init__(self, reader: Reader, train: Images, evaluation: Images | None, k: int, bank: Images | None = None):
        self.reader, self.accelerator, self.k, self.bank = reader, reader.accelerator, k, bank
        self.train = _sample(train, TRAIN_SAMPLE)
        self.evaluation = _sample(evaluation, EVAL_SAMPLE) if evaluation is not None else None

    def measure_and_log(self, history: History, model: MAEForPreTraining, epoch: float, update: int) -> None:
        """Measure the encoder of `model`, which may be sharded and in train mode. Print, log and store the values."""
        with whole_weights(model):
            self._record(history, self.measure(model.mae.eval()), epoch, update)

    def measure_baselines(
        self, history: History, config: MAEConfig, seed: int, start: Checkpoint | None = None
    ) -> None:
        """Measure the baselines, unless an earlier call did. `start` are the weights that the training begins with."""
        if not history.has("rank_untrained"):
            self._record(history, self.baselines(config, seed, start), 0.0, 0)

    def _record(self, history: History, values: dict[str, float], epoch: float, update: int) -> None:
        history.add({"step": update, "epoch": epoch, **values})
        self.accelerator.log(values, step=update)
        self.accelerator.print(f"features   epoch {epoch:g}  {describe_features(values)}", flush=True)

    def baselines(self, config: MAEConfig, seed: int, start: Checkpoint | None = None) -> dict[str, float]:
        """`knn_raw_pixels`, `knn_untrained` and `rank_untrained` of a model initialised by `seed`, and `knn_start` and
        `rank_start` of the weights in `start`. Accuracies are in 0..1. Also `knn_images`, the number of evaluation
        images, and of images with masks `knn_patches`."""
        with unchanged_random_states(self.accelerator.device):  # so that the training's random numbers do not change
            torch.manual_seed(seed)
            untrained = MAEModel(config).to(self.accelerator.device).eval()
        values = {f"{key}_untrained": value for key, value in self.measure(untrained).items()}
        if start is not None:
            with unchanged_random_states(self.accelerator.device):
                torch.manual_seed(seed)  # what the checkpoint does not have is new, and as in the training
                encoder = start.beginning(config).model.mae.to(self.accelerator.device).eval()
            values |= {f"{key}_start": value for key, value in self.measure(encoder).items()}
        pixels = len(self.train) * config.num_patches * config.patch_dim * 4  # bytes
        if self.is_dense:
            raw = self._of_patches(untrained.patchify, config.grid)
            values |= {f"{key}_raw_pixels": value for key, value in raw.items()}
        elif self.evaluation is not None and pixels < RAW_PIXELS_LIMIT:
            raw = self.measure(nn.Flatten(), rank=False)
            values |= {f"{key}_raw_pixels": value for key, value in raw.items()}
        if values and self.evaluation is not None:
            values["knn_images"] = len(self.evaluation)
        if values and self.is_dense:
            values["knn_patches"] = len(self.evaluation or ()) * config.num_patches
        return values

    def measure(self, encoder: Any, rank: bool = True) -> dict[str, float]:
        """`rank` of the encoder's features, and with labels `knn` (accuracy in 0..1)."""
        encode = features_of(encoder)
        train = self.reader.features(encode, self.train)
        test, values = None, {}
        if self.is_dense:
            values = self._of_patches(tokens_of(encoder), encoder.config.grid)
        elif self.evaluation is not None:
            test = self.reader.features(encode, self.evaluation)
        if not self.accelerator.is_main_process:
            return {}
        if test is not None:
            values["knn"] = knn_metrics(train, test, (self.k,), device=self.accelerator.device)[self.k]
        if rank:
            values["rank"] = effective_rank(torch.from_numpy(train.features))
        return values

    @property
    def is_dense(self) -> bool:
        """Whether patches are compared, and not images."""
        return self.bank is not None

    def _of_patches(self, encode: Callable[[torch.Tensor], torch.Tensor], grid: tuple[int, int]) -> dict[str, float]:
        """`knn`, the mean IoU in 0..1 of k-NN of patches, unless there are fewer than k."""
        train, test = self.bank, self.evaluation
        assert isinstance(train, MaskedImages) and isinstance(test, MaskedImages)
        knn = dense_metrics(self.reader, encode, train, test, grid, (self.k,)).get("knn", {})
        return {"knn": knn[self.k]} if self.k in knn else {}


def images_per_measurement(train: Images, evaluation: Images | None, bank: Images | None = None) -> int:
    """The number of images whose features a measurement computes."""
    samples = ((train, TRAIN_SAMPLE), (evaluation, EVAL_SAMPLE), (bank, TRAIN_SAMPLE))
    return sum(min(len(images), most) for images, most in samples if images is not None)


def _sample(images: Images, count: int) -> Images:
    if len(images) <= count:
        return images
    return images.view(rows=np.linspace(0, len(images) - 1, count).astype(int))
