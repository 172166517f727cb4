"""DICOM files of several frames, which are the slices of a volume: scans of one file, films, cuts of a microscope."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .dicom import PALETTE, bits_below, dicom_colours, dicom_numbers, linear_window, stored_pixels, syntax_of
from .faults import BadImage
from .limits import DEFLATE, Limit


# Elements in which the frames of an enhanced file may differ.
OF_A_FRAME = (
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
)
FRAGMENT = 8  # bytes that a compressed frame has at least
SAME_PLANE = 1e-3  # mm between frames that lie at the same place


@dataclass(frozen=True)
class Frames:
    """The frames of a file, sorted along their normal if they are parallel planes at different places. Else they keep
    the order of the file. `about` holds the file's elements without the pixels."""

    path: str
    about: Any

    @property
    def count(self) -> int:
        return int(self.about.NumberOfFrames)

    @property
    def inverted(self) -> bool:
        """Whether the lowest value is white."""
        return bool(self.about.PhotometricInterpretation == "MONOCHROME1")

    @property
    def in_colour(self) -> bool:
        return not str(self.about.PhotometricInterpretation).startswith("MONOCHROME")

    @cached_property
    def spacing(self) -> tuple[float, float]:
        """Height and width of a pixel. Without this element, pixels are square."""
        height, width = self._each[0].get("PixelSpacing") or (1, 1)
        return float(height), float(width)

    @cached_property
    def window(self) -> tuple[float, float] | None:
        """Black and white, if it is linear and all frames have the same."""
        windows = {linear_window(each) for each in self._each}
        return windows.pop() if len(windows) == 1 else None

    @property
    def as_it_is(self) -> bool:
        """Whether the values are 8 bits that a viewer shows from black to white."""
        about = self.about
        if self.in_colour:
            return bool(about.BitsAllocated == 8 or about.PhotometricInterpretation == PALETTE)
        changed = (self.window, about.get("VOILUTSequence"), about.get("ModalityLUTSequence"), self._is_rescaled)
        whole = about.BitsAllocated == about.BitsStored == 8 and not about.PixelRepresentation
        plain = whole and not (self.inverted or "PixelPaddingValue" in about or any(changed))
        return plain and self.spacing[0] == self.spacing[1]

    @property
    def _is_rescaled(self) -> bool:
        return any((each.get("RescaleSlope", 1), each.get("RescaleIntercept", 0)) != (1, 0) for each in self._each)

    def check(self, limit: Limit) -> None:
        """Raises a BadImage if a frame is too large, or the file cannot hold so many."""
        about, syntax = self.about, syntax_of(self.about)
        pixels = int(about.Rows) * int(about.Columns)
        limit.check(pixels)
        of_frame = pixels * int(about.SamplesPerPixel) * int(about.BitsAllocated) // 8
        least = FRAGMENT if syntax.is_compressed else max(1, of_frame * 2 // 3)  # two thirds are stored of YBR 4:2:2
        if self.count * least > limit.size * (DEFLATE if syntax.is_deflated else 1):
            raise BadImage(
                f"{limit.name} promises {self.count:,} frames, which {limit.size:,} bytes cannot hold: it is cut off"
            )

    def read(self, z: int) -> np.ndarray:
        """``(height, width)`` of a gray frame, rescaled, with NaN as padding; ``(3, height, width)`` in colours.

        Raises:
            Exception: the file is damaged.
        """
        import pydicom  # late: few sets need it
        from pydicom import pixels

        number = self._order[z]
        with open(self.path, "rb") as file:
            known = "TransferSyntaxUID" in self.about.file_meta and not syntax_of(self.about).is_deflated
            if known and not bits_below(self.about):
                values = pixels.pixel_array(file, index=number)  # reads no other frame
            else:
                values = stored_pixels(pydicom.dcmread(file, force=True), number)
        if self.in_colour:
            return np.moveaxis(dicom_colours(values, self.about), 2, 0)
        return dicom_numbers(values, self._each[number])

    @cached_property
    def _each(self) -> list:
        """The elements that hold for each frame: those of the file, of all its frames, and of the frame alone."""
        import pydicom

        shared = self.about.get("SharedFunctionalGroupsSequence") or []
        alone = self.about.get("PerFrameFunctionalGroupsSequence") or []
        of_file = {element.tag: element for element in self.about if element.VR != "SQ" or "LUT" in element.keyword}
        each = []
        for number in range(self.count):
            frame = pydicom.Dataset(dict(of_file))  # a copy, because Dataset changes the dictionary that it gets
            for group in [*shared[:1], *alone[number : number + 1]]:
                for macro in group:
                    for element in macro.value[0] if macro.VR == "SQ" and macro.value else ():
                        if element.keyword in OF_A_FRAME:
                            frame.add(element)
            each.append(frame)
        return each

    @cached_property
    def _order(self) -> list[int]:
        as_stored = list(range(self.count))
        places = [each.get("ImagePositionPatient") for each in self._each]
        directions = [each.get("ImageOrientationPatient") for each in self._each]
        if not all(places) or not all(directions):
            return as_stored
        turned = np.array(directions, np.float64)  # (frames, 6)
        along = np.array(places, np.float64) @ np.cross(turned[0, :3], turned[0, 3:])
        parallel = np.abs(turned - turned[0]).max() < 0.01
        apart = np.diff(np.sort(along)).min() > SAME_PLANE  # else they are times, or echoes, of the same planes
        return np.argsort(along, kind="stable").tolist() if parallel and apart else as_stored


def frames_of(path: str) -> Frames | None:
    """The frames of a file. None for a file with one picture.

    Raises:
        Exception: the file is damaged.
    """
    import pydicom

    with open(path, "rb") as file:
        few: Any = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=["NumberOfFrames"])
        if int(few.get("NumberOfFrames") or 1) < 2:
            return None
        file.seek(0)
        return Frames(path, pydicom.dcmread(file, stop_before_pixels=True, force=True))
