"""Masks of any images, as PNG files under the images' names."""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..checked import check, read_json
from ..checkpoint import Checkpoint, open_checkpoint
from ..data.find.places import Place
from ..data.find.row_names import RowNames
from ..data.read.decode import ImageRows
from ..errors import UserError
from ..files import replacing, write_csv, write_json
from ..segmentation_mae import MAEForSemanticSegmentation
from ..tasks.evalnet import names_of
from ..tasks.mask_pictures import overlay, palette
from ..tasks.protocol import distinct
from ..tasks.windows import classes_of
from ..training.run_folder import lock_folder
from ..words import counted
from .inputs import Inputs, ProgressBar, names_checksum, weights_checksum
from .parts import differences
from .tables import ApplySettings, local_path, quiet_accelerator


SETTINGS = "settings.json"
TABLE = "masks.csv"
CLASSES = "classes.json"  # a folder of masks with it can be trained on
OVERLAYS = "overlays"
AHEAD = 2  # images that are read while the model works
ROWS_AT_ONCE = 256  # of an overlay
STRENGTH = 0.5  # of the classes' colours over an image


@dataclass(frozen=True)
class MaskOutput:
    """The folder that masks go to, whether each also gets a picture of the image under its colours, and whether masks
    of other settings, which this project wrote there, may be replaced."""

    folder: Path
    overlay: bool = False
    overwrite: bool = False


def write_masks(checkpoint: str, images: Place, output: MaskOutput, settings: ApplySettings) -> None:
    """A mask for each of the `images`, and a table with the share of each class. What is there already from an
    earlier call of the same settings stays.

    Raises:
        UserError: as `predict`; or the folder holds masks of other settings, or cannot be written.
    """
    accelerator = quiet_accelerator()
    opened = open_checkpoint(checkpoint)
    accelerator.print(opened.notes_text(), end="")
    inputs = settings.open(opened, images, accelerator, say=accelerator.print)
    model = opened.trained(MAEForSemanticSegmentation).eval()
    names = names_of(opened.config)
    accelerator.print(
        f"masks      {checkpoint}, {counted(len(names), 'class', 'classes')}, {counted(len(inputs), 'image')}"
    )
    made_with = {
        "weights": weights_checksum(model),
        "images": f"{len(inputs):,}, {names_checksum(inputs.source)}",
        "precision": f"{accelerator.mixed_precision} on {accelerator.device.type}",
        "overlay": output.overlay,
    }
    files = RowNames(inputs.source).files(0, len(inputs))
    targets = mask_files(files)
    if accelerator.is_main_process:
        _claim(output, made_with, names)
    accelerator.wait_for_everyone()
    _predict(accelerator, inputs, model, output, targets)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _write_table(output.folder, targets, names, files)
        written = sum((output.folder / target).exists() for target in targets)
        gone = f"; {counted(len(targets) - written, 'unreadable image')} left out" if written < len(targets) else ""
        said = f"written    {output.folder}: {counted(written, 'mask')}, {CLASSES} and {TABLE}{gone}"
        accelerator.print(said, flush=True)


def mask_files(files: list[str]) -> list[str]:
    """The path of each image's mask in the folder of masks: that of the image, ending in .png instead. If two masks
    would have one path, .png is added to the image's name. If rows have one name, their numbers are added too."""
    paths = [PurePosixPath(*(part for part in PurePosixPath(file).parts if part not in ("/", ".."))) for file in files]
    counts = Counter(path.with_suffix("") for path in paths)
    masks = [f"{path if counts[path.with_suffix('')] > 1 else path.with_suffix('')}.png" for path in paths]
    repeats = Counter(masks)  # rows of a table may have the same name
    return [mask if repeats[mask] == 1 else f"{mask[:-4]}-{row}.png" for row, mask in enumerate(masks)]


def _claim(output: MaskOutput, made_with: dict, names: list[str]) -> None:
    folder, path = output.folder, output.folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(not inside.name.startswith(".") for inside in folder.iterdir()):
            raise UserError(f"folder {str(folder)!r} holds other files: give another")
        lock_folder(folder)
        before = check(path, read_json(path), {}, needed=made_with) if path.exists() else made_with
        changes = differences(before, made_with)
        if changes and not output.overwrite:
            raise UserError(f"{str(folder)!r} holds masks of {changes}: give another folder, or --overwrite")
        if changes:
            for mask in folder.rglob("*.png"):
                mask.unlink()
        write_json(path, made_with)
        write_json(folder / CLASSES, dict(enumerate(names)))
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be written ({error.strerror}): give another") from error


def _predict(
    accelerator: Accelerator, inputs: Inputs, model: MAEForSemanticSegmentation, output: MaskOutput, targets: list[str]
) -> None:
    """The masks that this process has to make, and that are not there yet."""
    torch.nn.Module.to(model, accelerator.device)
    inputs.transform.to(accelerator.device)
    own = range(accelerator.process_index, len(inputs), accelerator.num_processes)
    rows = [row for row in own if not (output.folder / targets[row]).exists()]
    bar = ProgressBar(len(rows), accelerator.is_main_process, accelerator.num_processes)
    colours = palette(model.config.num_labels or 0)
    for row, image in _read_ahead(inputs, rows):
        if image is not None:
            with accelerator.autocast():
                # Rows of a damaged file may turn out to be unreadable only here.
                mask = inputs.files.try_file(row, lambda data, path, image=image: mask_of(model, inputs, image))
            if mask is not None:
                _save(output.folder / targets[row], mask, colours)
            if mask is not None and output.overlay:
                _save_overlay(output.folder / OVERLAYS / targets[row], image, mask, colours)
            if isinstance(image, ImageRows):
                image.close()
        bar.advance(1)
    bar.close()


def mask_of(model: MAEForSemanticSegmentation, inputs: Inputs, image: torch.Tensor | ImageRows) -> np.ndarray:
    """Class numbers ``(height, width)`` uint8 of an image ``(channels, height, width)``, at its own size."""
    device = inputs.transform.mean.device

    def normalised(rows: torch.Tensor) -> torch.Tensor:
        return inputs.transform({"images": rows.to(device)}, tuple(rows.shape[2:]))

    return classes_of(model, image, normalised).numpy()


def _read_ahead(inputs: Inputs, rows: list[int]) -> Iterator[tuple[int, torch.Tensor | ImageRows | None]]:
    """(row, image) in order, None for one that cannot be read where bad images are skipped."""
    read = inputs.files.whole_or_rows
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for row in rows:
            waiting.append((row, pool.submit(read, row)))
            if len(waiting) > AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _save(target: Path, mask: np.ndarray, colours: np.ndarray) -> None:
    picture = Image.fromarray(mask, "P")
    picture.putpalette(colours.tobytes())
    with replacing(target) as partial:
        picture.save(partial, "PNG")


def _save_overlay(target: Path, image: torch.Tensor | ImageRows, mask: np.ndarray, colours: np.ndarray) -> None:
    shown = np.empty((*mask.shape, 3), np.uint8)
    for top in range(0, len(mask), ROWS_AT_ONCE):
        rows = slice(top, min(top + ROWS_AT_ONCE, len(mask)))
        shown[rows] = overlay(image[:, rows], mask[rows], colours, STRENGTH)
    with replacing(target) as partial:
        Image.fromarray(shown).save(partial, "PNG")


def _write_table(folder: Path, targets: list[str], names: list[str], files: list[str]) -> None:
    """A row for each mask: the image's file, the mask's, and the share of each class in its pixels."""

    def rows() -> Iterator[list]:
        for file, target in zip(files, targets, strict=True):
            path = folder / target
            if not path.exists():
                continue  # of an image that cannot be read
            Image.MAX_IMAGE_PIXELS = None  # the file is ours
            with Image.open(path) as picture:
                counts = np.array(picture.histogram()[: len(names)])
            yield [file, target, *(f"{share:.6f}" for share in counts / counts.sum())]

    write_csv(folder / TABLE, ["file", "mask", *distinct(names)], rows())


def writes_masks(checkpoint: Checkpoint) -> bool:
    """Whether what the checkpoint says of an image is a mask."""
    return checkpoint.kind is MAEForSemanticSegmentation


def output_folder(output: str) -> Path:
    """Where masks go.

    Raises:
        UserError: `output` is the name of a file, or a URL.
    """
    folder = local_path(output)
    if folder.suffix in (".parquet", ".csv") or folder.is_file():
        raise UserError(f"masks are pictures: give a folder in place of {output!r}")
    return folder
