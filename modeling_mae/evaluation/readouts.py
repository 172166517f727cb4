"""Compares readouts (blocks and poolings) by k-NN, a linear model and a probe."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..configuration_mae import MAEConfig
from ..data.serve.images import Images
from ..modeling_mae import MAEModel
from ..readout import ATTENTION, PATCHES, POOLINGS, Readout, check_choice, pooled_output, read
from ..tasks import Task
from ..tasks.sets import LabelledSets
from ..training.launch import feature_memory, smallest_budget
from .features import JudgeSettings, K, frozen_encoder, frozen_table, judge
from .probes import probe_metric
from .reader import FrozenSet, Reader


COMPARED = [pooling for pooling in POOLINGS if pooling != PATCHES]  # by k-NN and linear models
POOLED = "pooled"  # the features that the encoder itself pools
TABLED = [pooling for pooling in COMPARED if pooling != "flatten"]  # flatten grows with the image


@dataclass(frozen=True)
class ReadoutSettings:
    """The readouts that the user chose.

    `readouts` "all": every pooling of the blocks at half and at three quarters of the depth, of the last block, and of
    all blocks concatenated (attention: only of single blocks). `feature_layers` (default: the last block) and
    `feature_pooling` (default: the mean), if given, add a row for each pooling of these blocks, concatenated.
    """

    readouts: str | None = None
    feature_layers: list[int] | None = None
    feature_pooling: list[str] | None = None

    def chosen(self, depth: int) -> list[Readout]:
        """The readouts of an encoder of `depth` blocks.

        Raises:
            UserError: a name, block or pooling does not exist, or is given twice.
        """
        check_choice("readouts", [] if self.readouts is None else [self.readouts], ["all"])
        check_choice("feature_layers", self.feature_layers or [], range(1, depth + 1))
        check_choice("feature_pooling", self.feature_pooling or [], COMPARED)
        chosen = []
        if self.feature_layers is not None or self.feature_pooling is not None:
            blocks = tuple(self.feature_layers or [depth])
            chosen = [Readout(blocks, pooling) for pooling in self.feature_pooling or ["mean"]]
        if self.readouts is None:
            return chosen
        single = [(block,) for block in sorted({max(1, depth // 2), max(1, 3 * depth // 4), depth})]
        everything = [tuple(range(1, depth + 1))] if depth > 1 else []
        pairs = itertools.product(TABLED, [*single, *everything])
        every = [Readout(blocks, pooling) for pooling, blocks in pairs if pooling != ATTENTION or blocks in single]
        return list(dict.fromkeys(every + chosen))


@dataclass(frozen=True)
class FrozenSettings:
    """Which frozen features are evaluated, and how."""

    seed: int
    knn: bool
    with_masks: bool


def frozen_rows(
    reader: Reader,
    start: Checkpoint,
    config: MAEConfig,
    sets: LabelledSets,
    readouts: list[Readout],
    settings: FrozenSettings,
) -> list[dict]:
    """The rows of results of the frozen features of `start`: those of `frozen_table` with `knn`, and the `readouts`.

    Raises:
        UserError: frozen features cannot be evaluated with the labels.
    """
    if not settings.knn and not readouts:
        return []
    encoder = frozen_encoder(start, config, reader.accelerator.print)
    judging = JudgeSettings(settings.seed, sets.task if settings.with_masks else sets.frozen_task)
    images, known, rows, seen = (sets.training, sets.evaluation), None, list[dict](), list[dict]()
    if readouts:
        readouts, seen = read_once(reader, encoder, images, readouts, feature_memory())
        known = [FrozenSet(arrays[POOLED], arrays["labels"]) for arrays in seen]
    if settings.knn:
        rows += frozen_table(reader, encoder, *images, "pre-trained encoder", judging, known)
    return rows + readout_table(reader, encoder.config, seen, readouts, judging)


def read_once(
    reader: Reader, encoder: MAEModel, images: tuple[Images, Images], readouts: list[Readout], memory_budget: int
) -> tuple[list[Readout], list[dict]]:
    """Runs `encoder` once over the images to train and to evaluate on.

    Returns the `readouts` whose features fit into `memory_budget` bytes, and for each set of images the arrays that
    they need: those of each (block, pooling), `POOLED`, and "labels".
    """
    accelerator, config = reader.accelerator, encoder.config
    memory_budget = smallest_budget(accelerator, memory_budget)
    kept = _fitting(readouts, config, sum(map(len, images)), memory_budget, accelerator.print)
    keys = list(dict.fromkeys(key for readout in kept for key in readout.keys))
    model = accelerator.prepare_model(encoder, evaluation_mode=True).eval()

    def compute(batch: dict) -> dict:
        outputs, features = read(model, reader.transform(batch), keys)
        arrays: dict = {**features, POOLED: pooled_output(outputs)}
        return {**{key: value.float() for key, value in arrays.items()}, "labels": batch["labels"]}

    return kept, [reader.map(one, compute) for one in images]


def readout_table(
    reader: Reader, config: MAEConfig, seen: list[dict], readouts: list[Readout], settings: JudgeSettings
) -> list[dict]:
    """A row for each of the `readouts`: `name`, `feature_layers`, `feature_pooling`, `knn` and `logistic_regression`
    as in `frozen_table`, and `probe` as in `probe_metric`. Attention only has the probe.

    `seen` is what `read_once` returns for `readouts`. Only the main process gets the metrics.
    """
    accelerator, rows = reader.accelerator, []
    for readout in readouts:
        row: dict = {"name": str(readout), "feature_layers": list(readout.blocks), "feature_pooling": readout.pooling}
        if accelerator.is_main_process:
            trained_on, tested_on = (FrozenSet(readout.of(arrays), arrays["labels"]) for arrays in seen)
            if readout.pooling != ATTENTION:
                row |= judge(reader, trained_on, tested_on, settings)
            row["probe"] = probe_metric(config, trained_on, tested_on, settings, accelerator.device)
        rows.append(row)
        accelerator.print(f"readout    {readout}: {_figures(row, settings.task)}", flush=True)
    accelerator.wait_for_everyone()
    return rows


def _figures(row: dict, task: Task) -> str:
    """The metrics of a row in words."""
    problem = task.problem
    figures = {"k-NN": row.get("knn", {}).get(K), **{title: row.get(key) for key, title in problem.columns.items()}}
    return "  ".join(f"{title} {problem.shown(value)}" for title, value in figures.items() if value is not None)


def _fitting(
    readouts: list[Readout], config: MAEConfig, images: int, budget: int, say: Callable[[str], None]
) -> list[Readout]:
    """The `readouts` whose features all fit into `budget` bytes together. `say` prints the others. Computing with
    features needs their memory a second time."""
    sizes: dict[tuple[int, str], int] = {}
    kept = []
    for readout in readouts:
        size_of_one = 2 * images * readout.size(config) // len(readout.blocks)
        needed = {**sizes, **dict.fromkeys(readout.keys, size_of_one)}
        if sum(needed.values()) > budget:
            say(f"note       no readout {readout}: its features would take {size_of_one / 2**30:.1f} GiB for a block")
            continue
        kept.append(readout)
        sizes = needed
    return kept
