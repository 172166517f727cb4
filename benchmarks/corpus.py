"""What our reading makes of the test files of Pillow, imagecodecs and pydicom, beside independent readers.

The source archives come from the package index by pip, into a folder that is removed at the end. Each file is read in
another process, so that a crash is seen. It is compared with Pillow's 8 bits (transparency on white, upright), with
tifffile's numbers where Pillow does not read a TIFF, and with pydicom's window. The table says how many files were
listed, decoded, refused with a reason (alone: Pillow reads it), ended otherwise (that is a bug), differ, and wrote to
standard error; then each one that differs.

    PYTHONPATH=. python benchmarks/corpus.py [--archives FOLDER] [--refused]
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pydicom.data
import tifffile
from PIL import Image, ImageOps
from pydicom import pixels

from modeling_mae.data.find.listing import image_endings
from modeling_mae.data.read.decode import decode
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.header import read_header


PACKAGES = ("pillow", "imagecodecs")
EXACT, LOSSY = 1.01, 24  # levels of 255 that two readers may differ by
LOSSY_FORMATS = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"}
SECONDS = 120  # for a file


def unpacked(archives: str | None, folder: Path) -> dict[str, list[Path]]:
    """The files of each corpus that the product would list."""
    source = Path(archives or folder / "archives")
    for package in PACKAGES:
        if not list(source.glob(f"{package}-*.tar.gz")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package]
            subprocess.run([*command, "--dest", str(source), package], check=False)
        for archive in source.glob(f"{package}-*.tar.gz"):
            with tarfile.open(archive) as tar:
                tar.extractall(folder / package, filter="data")
    roots = {package: folder / package for package in PACKAGES}
    roots["pydicom"] = Path(pydicom.data.__file__).parent
    endings = image_endings()
    return {
        name: sorted(path for path in root.rglob("*") if path.suffix.lower() in endings and path.is_file())
        for name, root in roots.items()
    }


def pictured(image: Image.Image) -> np.ndarray:
    """``(height, width)`` or ``(height, width, 3)`` where 255 is white, by Pillow alone."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        shown = values * (255 if image.mode == "F" or (image.format == "TIFF" and image.mode == "I") else 1 / 257)
        return np.where(values == image.info["transparency"], 255, shown) if "transparency" in image.info else shown
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def viewed(path: str) -> np.ndarray:
    """A DICOM picture as pydicom's functions show it, on the scale of our reading."""
    about = pydicom.dcmread(path, force=True)
    values = pixels.pixel_array(about)
    if about.PhotometricInterpretation == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, about)
        return values / (np.iinfo(values.dtype).max / 255)
    if values.ndim == 3:
        return values / (np.iinfo(values.dtype).max / 255)
    shown = pixels.apply_modality_lut(values, about).astype(np.float64)
    inverted = about.PhotometricInterpretation == "MONOCHROME1"
    if about.get("WindowWidth") or about.get("VOILUTSequence"):
        ends = np.array([-(2.0**31), 2.0**31])
        low, high = pixels.apply_windowing(ends, about) if about.get("WindowWidth") else (0, 65535)
        shown = (pixels.apply_voi_lut(shown, about) - low) / (high - low) * 255
        return 255 - shown if inverted else shown
    if shown.dtype.kind == "f" and (values.dtype.kind == "i" or not np.array_equal(shown, values)):
        return shown * 255
    bits = {1: 8, 2: 16}.get(values.dtype.itemsize) or 2 * -(-int(values.max()).bit_length() // 2)
    return shown / ((1 << bits) - 1) * 255


def reference(path: str, format: str) -> np.ndarray:
    """The picture by an independent reader."""
    if format == "DICOM":
        return viewed(path)
    if format == "TIFF" and (values := numbers_of_tiff(path)) is not None:
        return values
    try:
        with Image.open(path) as image:
            return pictured(image)
    except Exception:
        if format != "TIFF":
            raise
        values = tifffile.imread(path, key=0)
        return values * (255 / np.iinfo(values.dtype).max if values.dtype.kind == "u" else 255.0)


def numbers_of_tiff(path: str) -> np.ndarray | None:
    """What tifffile reads where Pillow lacks the sign, the bits or the bands of a TIFF; else None."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        bits, sign = page.bitspersample, page.dtype is not None and page.dtype.kind == "i"
        if int(page.photometric) != 1 or (page.samplesperpixel == 1 and not sign and bits in (1, 2, 4, 8, 16, 32)):
            return None
        if page.samplesperpixel == 2 and set(map(int, page.extrasamples)) & {1, 2}:
            return None  # transparency
        values = page.asarray()
    values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values
    return values * (255.0 if values.dtype.kind in "fi" else 255 / ((1 << min(bits, 16)) - 1))


def read(path: str) -> tuple[str, str, int]:
    """(outcome, reason, bytes that our reading wrote to standard error) of a file."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as others:
        os.dup2(errors.fileno(), 2)
        with suppress(Exception):
            decode(None, path, read_header(None, path).channels)
        sys.stderr.flush()
        os.dup2(others.fileno(), 2)  # what the other readers say is not counted
        return *outcome_of(path), errors.seek(0, os.SEEK_END)


def refused(path: str, reason: str) -> tuple[str, str]:
    """Whether an independent reader reads a file that was refused."""
    try:
        with Image.open(path) as image:
            image.load()
        return "refused alone", reason
    except Exception:
        return "refused", reason


def outcome_of(path: str) -> tuple[str, str]:
    try:
        header = read_header(None, path)
        ours = decode(None, path, header.channels).numpy()
    except BadImage as error:
        return refused(path, str(error).removeprefix(path))
    except BaseException as error:
        return "uncaught", f"{type(error).__name__}: {error}"
    try:
        theirs = reference(path, header.format)
    except Exception as error:
        return "decoded alone", f"{type(error).__name__}: {error}"
    theirs = theirs[None] if theirs.ndim == 2 else np.moveaxis(theirs, -1, 0)
    if theirs.shape[1:] != ours.shape[1:] or (header.height, header.width) != ours.shape[1:]:
        return "differs", f"{theirs.shape} in place of {ours.shape}, header {header.height}x{header.width}"
    if len(theirs) != len(ours):  # gray as colours, or the other way
        theirs, ours = theirs.mean(0, keepdims=True), ours.mean(0, keepdims=True)
    apart = np.abs(theirs.astype(np.float64) - ours.astype(np.float64))
    most = LOSSY if header.format in LOSSY_FORMATS else EXACT
    if apart.max(initial=0) > most:
        return "differs", f"by up to {apart.max():.1f}, {apart.mean():.2f} on average ({header.format}, {len(ours)})"
    return "decoded", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", help="folder with the source archives, which are not fetched then")
    parser.add_argument("--refused", action="store_true", help="say why each file was refused")
    args = parser.parse_args()
    told = {"differs", "uncaught", "refused alone"} | ({"refused", "decoded alone"} if args.refused else set())
    columns = ("listed", "decoded", "decoded alone", "refused", "refused alone", "uncaught", "differs", "noisy")
    lines = ["| corpus | " + " | ".join(columns) + " |", "|--" * (len(columns) + 1) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, paths in unpacked(args.archives, Path(folder)).items():
            counts, context = Counter(listed=len(paths)), get_context("spawn")
            pool = ProcessPoolExecutor(1, context)
            for path in paths:
                try:
                    outcome, reason, noise = pool.submit(read, str(path)).result(timeout=SECONDS)
                except (BrokenExecutor, TimeoutError) as error:
                    outcome, reason, noise = "uncaught", f"the process: {type(error).__name__}", 0
                    pool.shutdown(wait=False)
                    pool = ProcessPoolExecutor(1, context)
                counts[outcome] += 1
                counts["noisy"] += noise > 0 and outcome != "refused"
                if outcome in told or (noise and outcome != "refused"):
                    print(f"{name}: {path.name}: {outcome} {reason} {'noisy' * (noise > 0)}", flush=True)
            pool.shutdown()
            lines.append(f"| {name} | " + " | ".join(str(counts[column]) for column in columns) + " |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
