"""Which files count as images, by their names: in a folder and in a tar file alike."""

import re

from PIL import Image, features

from .dicom import has_pydicom


NO_DECODER = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that Pillow knows by name only
OTHER_IMAGES = (".heic", ".heif", ".avif", ".avifs", ".jxl", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".eps")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
SYSTEM_FOLDERS = {"@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}  # hold copies
MASK_WORDS = r"masks?|labels?|annot|annotations?|ground[-_ ]?truth|gt|segmentations?|seg"
NIFTI = (".nii", ".nii.gz")
MASK_ENDING = (
    rf"(?i)[._-]({MASK_WORDS})\.(nii\.)?[^./]+$"  # `0001.seg.png`, as webdataset names it, and `0001_mask.png`
)


def image_endings() -> frozenset[str]:
    """Endings of the files that are read here, in lower case."""
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    missing = {ending for ending, kind in Image.registered_extensions().items() if kind in NO_DECODER}
    avif = set() if "avif" in features.get_supported_modules() else {".avif", ".avifs"}
    arrays = {".npy", ".npz"} | ({".dcm"} if has_pydicom() else set())
    return frozenset((known - missing - avif) | arrays)


def ending_of(path: str) -> str:
    """The ending in lower case, or an empty text."""
    _, dot, ending = path.rpartition("/")[2].rpartition(".")  # os.path.splitext takes three times as long
    if ending.lower() == "gz" and path.lower().endswith(NIFTI):
        return NIFTI[1]
    return f".{ending.lower()}" if dot else ""


def without_ending(path: str) -> str:
    ending = ending_of(path)
    return path[: len(path) - len(ending)]


def why_no_image(ending: str) -> str:
    """The reason why files that end so are not among the images."""
    if ending == ".dcm":
        return f"{ending} (install pydicom to read it)"
    if ending in NIFTI:
        return f"{ending} (a volume: --slices all reads it)"
    if ending in ARCHIVES:
        return f"{ending} (packed: unpack it)"
    kind = "not readable here" if ending in OTHER_IMAGES else "not an image"
    return f"{ending or 'without an ending'} ({kind})"


def why_hidden(name: str, is_folder: bool) -> str:
    """The reason why a file or folder of this name is passed over; empty if it is not."""
    if name.startswith(".") and name not in (".", ".."):
        return "hidden"
    if is_folder and name.startswith("__"):
        return "in folders that begin with __"
    if is_folder and name.lower() in SYSTEM_FOLDERS:
        return f"in folders called {name}"
    if not name.isascii() and re.search("[\ud800-\udfff]", name):  # what Python reads other bytes as
        return f"{'in folders ' * is_folder}with a name that is not UTF-8"
    return ""


def why_left_out(path: str, endings: frozenset[str]) -> str:
    """The reason why the file at `path` is not among the images; empty for an image."""
    *folders, name = path.split("/")
    hidden = next(filter(None, (why_hidden(folder, True) for folder in folders)), "") or why_hidden(name, False)
    ending = ending_of(name)
    return hidden or ("" if ending in endings else why_no_image(ending))
