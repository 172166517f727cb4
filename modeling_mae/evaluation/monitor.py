"""Draws pictures and evaluates features, during a pre-training and after it."""

from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import send_to_device

from ..checkpoint import Checkpoint
from ..data.pretraining_sets import PretrainingSets
from ..report.facts import FeatureFacts
from ..report.neighbours import save_nearest
from ..report.reconstruction import PICTURED, ReconstructionSheet
from ..training.launch import log_image
from ..training.state import Run
from ..words import SEMANTIC_SEGMENTATION
from .features import K, knn_of_saved
from .growth import FeatureGrowth
from .nearest import nearest_images
from .reader import Reader


@dataclass(frozen=True)
class MonitorSettings:
    """What is drawn and evaluated, and how often."""

    seed: int  # of the pictures' masks, of the untrained encoder and of the probes
    image_mean: list[float]
    image_std: list[float]
    eval_every_epochs: int  # 0: never
    picture_epochs: int  # 0: never
    knn: bool  # of the trained model
    bands: list[int] | None = None


class Monitor:
    """Draws and evaluates the model of a `run`, always on the same images. Every process must call every method."""

    def __init__(self, run: Run, sets: PretrainingSets, reader: Reader, settings: MonitorSettings):
        self.run, self.sets, self.reader, self.settings = run, sets, reader, settings
        self.folder, accelerator = run.place.folder, run.accelerator
        self.model = accelerator.unwrap_model(run.model, keep_torch_compile=False)
        batch = send_to_device(sets.images.batch(0, sets.images.spread(PICTURED)), accelerator.device)
        mean, std = settings.image_mean, settings.image_std
        self.sheet = ReconstructionSheet(self.model, reader.transform(batch), mean, std, settings.seed)
        self.growth = FeatureGrowth(reader, sets.images, sets.evaluation, K, sets.bank)

    def evaluate_baselines(self, start: Checkpoint | None) -> None:
        """Evaluates raw pixels, an untrained encoder, and the weights that the training begins with."""
        if self.settings.eval_every_epochs:
            self.growth.measure_baselines(self.run.history, self.sheet.config, self.settings.seed, start)

    def after_epoch(self, epoch: int, update: int) -> None:
        """Evaluates and draws what is due, as `updates` asks."""
        evaluates, draws, schedule = self.settings.eval_every_epochs, self.settings.picture_epochs, self.run.schedule
        if evaluates and (epoch % evaluates == 0 or update == schedule.updates):
            self.growth.measure_and_log(self.run.history, self.model, schedule.epoch(update), update)
        if draws and epoch % draws == 0:
            self._draw(self.folder / "pictures" / f"reconstruction-epoch-{epoch:04d}.png", update)

    def of_trained(self) -> FeatureFacts:
        """Draws and evaluates the model that `save_model` has written."""
        settings, sets = self.settings, self.sets
        self._draw(self.folder / "reconstruction.png", self.run.schedule.updates)
        nearest = nearest_images(self.reader, self.model, sets.images, sets.pictured)
        tested = sets.evaluation if settings.knn else None
        knn = knn_of_saved(self.reader, self.folder, sets.compared, tested, settings.seed)
        shown = save_nearest(self.folder / "neighbours.png", nearest, settings.image_mean, settings.image_std)
        problem = None if sets.bank is None else SEMANTIC_SEGMENTATION
        return FeatureFacts(K, knn, self.sheet.describe(settings.bands), shown, problem)

    def _draw(self, path: Path, update: int) -> None:
        accelerator = self.run.accelerator
        log_image(accelerator, "reconstruction", self.sheet.save(path, accelerator.is_main_process), update)
