"""Slices of volumes: equal to what nibabel, tifffile, NumPy and hand-computed orientations give."""

import gzip
import io
import itertools
import re
import shutil
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from applied import save_checkpoint
from conftest import TWO_PROCESSES, assert_same_run, dealt_batches, run, weights_and_history

from configuration import ArgumentError, EvalArguments, PretrainArguments
from modeling_mae.commands import features as features_command
from modeling_mae.data.find import slices as slices_module
from modeling_mae.data.find.facts import image_facts
from modeling_mae.data.find.fingerprint import fingerprint
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.listing import list_place
from modeling_mae.data.find.row_names import RowNames
from modeling_mae.data.find.sources import SourceSettings, load_source
from modeling_mae.data.read import volumes
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.volumes import open_volume
from modeling_mae.data.serve.images import ImageSettings, Opening, open_images
from modeling_mae.errors import UserError
from modeling_mae.evaluation import extract_features
from modeling_mae.evaluation.extraction import write_features
from modeling_mae.evaluation.neighbours import load_features, query_features
from modeling_mae.evaluation.tables import ApplySettings, Output
from modeling_mae.tasks.masks import Masks
from modeling_mae.tasks.sets import load_labelled_sets


NOISE = np.random.default_rng(0).integers(0, 4000, (6, 20, 16)).astype(np.int16)  # (slices, height, width)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Every test has a cache of its own, so that no volume is unpacked before."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder))
    return folder / "volumes"


def opened(place, slices="all", **options):
    return load_source(SourceSettings(train_dir=str(place), slices=slices, **options), None)


def names_of(source) -> list[str]:
    return RowNames(source).files(0, len(source))


def pixels_of(source, index: int) -> np.ndarray:
    return np.load(io.BytesIO(source.cell(index)["bytes"]))


def in_window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def save_nifti(path, values: np.ndarray, affine=None, **header) -> None:
    image = nibabel.Nifti1Image(values, np.diag([-1.0, -1, 1, 1]) if affine is None else affine)
    if header:
        image.header.set_slope_inter(**header)
    nibabel.save(image, path)


def save_axial(path, slices: np.ndarray) -> None:
    """``(slices, height, width)`` as a viewer shows them, in a file whose axes are left, back and top."""
    save_nifti(path, slices.transpose(2, 1, 0))


def save_series(folder, values: np.ndarray, uid="1.2.3", seed=0, direction=(1, 0, 0, 0, 1, 0), each=None, **elements):
    """``(slices, height, width)`` as DICOM files 3 mm apart, in an order that names and numbers do not tell."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(direction[:3], direction[3:])
    for name, z in enumerate(np.random.default_rng(seed).permutation(len(values))):
        about = pydicom.dataset.FileDataset(None, {}, preamble=b"\0" * 128)
        about.file_meta = pydicom.dataset.FileMetaDataset()
        about.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        kind = about.SOPClassUID = about.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        about.SOPInstanceUID = about.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{z + 1}"
        assert kind and about.SOPInstanceUID
        about.SeriesInstanceUID, about.InstanceNumber = uid, 100 - name
        about.ImageOrientationPatient, about.PixelSpacing = list(direction), [1, 1]
        about.ImagePositionPatient = (np.array([5.0, 7, -40]) + 3 * z * normal).tolist()
        about.Rows, about.Columns, about.SamplesPerPixel = *values.shape[1:], 1
        about.PhotometricInterpretation, about.PixelRepresentation = "MONOCHROME2", 1
        about.BitsAllocated, about.BitsStored, about.HighBit = 16, 16, 15
        about.RescaleSlope, about.RescaleIntercept = 2, -1000
        for key, value in {**elements, **(each(z) if each else {})}.items():
            setattr(about, key, value)
        about.PixelData = values[z].astype(np.int16).tobytes()
        pydicom.dcmwrite(folder / f"{uid}-{name}.dcm", about, enforce_file_format=True)


# --- what a slice is ---


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", [*itertools.permutations("RAS")])
def test_slices_of_nifti_are_axial_and_upright(tmp_path, axes, ending):
    """Each voxel holds its place in the body: from slice to slice higher, from row to row further back, from column to
    column further left."""
    for number, signs in enumerate(itertools.product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = 0
        for axis, (letter, sign) in enumerate(zip(axes, signs, strict=True)):
            affine["RAS".index(letter), axis] = sign
        affine[:3, 3] = 11, -7, 3
        i, j, k = np.indices((4, 5, 6))
        x, y, z = (affine[row, 0] * i + affine[row, 1] * j + affine[row, 2] * k + affine[row, 3] for row in range(3))
        path = tmp_path / f"{number}{ending}"
        save_nifti(path, (10_000 * (x + 20) + 100 * (y + 20) + z + 20).astype(np.int32), affine)
        volume = open_volume((str(path),), 1000)
        seen = np.stack([volume.read(z) for z in range(volume.count)])  # (slices, rows, columns)
        right, front, top = seen // 10_000 - 20, seen // 100 % 100 - 20, seen % 100 - 20
        assert (np.diff(top, axis=0) == 1).all() and (np.diff(front, axis=1) == -1).all()
        assert (np.diff(right, axis=2) == -1).all()
        assert top.min() == z.min() and front.max() == y.max() and right.max() == x.max()


def test_one_window_for_a_volume(tmp_path):
    """Its percentiles 0.5 and 99.5 of nibabel's own numbers, which the file's slope and intercept rescale."""
    save_nifti(tmp_path / "scan.nii.gz", NOISE.transpose(2, 1, 0), slope=0.5, inter=-100)
    whole = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    source, window = opened(tmp_path), np.percentile(whole, [0.5, 99.5])
    assert names_of(source) == [f"scan.nii.gz#z={z}" for z in range(6)]
    for z in range(6):
        np.testing.assert_allclose(pixels_of(source, z), in_window(whole[:, :, z].T, *window), atol=1e-6)
    images = open_images(source, Opening((20, 16), 1))
    np.testing.assert_allclose(images.read(3)[0] / 255, in_window(whole[:, :, 3].T, *window), atol=1e-6)
    assert images.white == 1 and "6 of 6" not in images.remarks


def test_pixels_become_square(tmp_path):
    """Rows 2 mm high and columns 1 mm wide: twice the rows. Numbers of a mask are not blended."""
    save_nifti(tmp_path / "scan.nii", NOISE.transpose(2, 1, 0), np.diag([-1.0, -2, 5, 1]))
    assert [pixels_of(opened(tmp_path), z).shape for z in range(6)] == [(40, 16)] * 6
    mask = volumes.square_pixels(np.array([[1, 7], [3, 9]]), (3, 1), "nearest")
    assert mask.tolist() == [[1, 7]] * 3 + [[3, 9]] * 3


def test_pages_are_those_of_tifffile(tmp_path):
    """8 bits as they are, gray or coloured; all others in the window of the file. Smaller pages are previews."""
    stack = np.random.default_rng(1).integers(0, 256, (5, 20, 16, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a-gray.tif", stack[..., 0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "b-colours.tif", stack, photometric="rgb", compression="deflate")
    with tifffile.TiffWriter(tmp_path / "c-deep.tif") as file:
        for page in NOISE.astype(np.uint16):
            file.write(page, contiguous=False)
        file.write(NOISE[0, :4, :4].astype(np.uint16), contiguous=False)
    tifffile.imwrite(tmp_path / "d-one.tif", stack[0, ..., 0])
    source = opened(tmp_path)
    counts = {"a-gray.tif": 5, "b-colours.tif": 5, "c-deep.tif": 6}
    assert names_of(source)[:-1] == [f"{name}#z={z}" for name, count in counts.items() for z in range(count)]
    assert names_of(source)[-1] == "d-one.tif"
    for z in range(5):
        assert np.array_equal(pixels_of(source, z), tifffile.imread(tmp_path / "a-gray.tif", key=z))
        page = tifffile.imread(tmp_path / "b-colours.tif", key=z)
        assert np.array_equal(pixels_of(source, 5 + z), page.transpose(2, 0, 1))
    window = np.percentile(NOISE, [0.5, 99.5])
    for z in range(6):
        np.testing.assert_allclose(pixels_of(source, 10 + z), in_window(NOISE[z], *window), atol=1e-6)


@pytest.mark.parametrize("compression", [None, "deflate", "jpeg"])
@pytest.mark.parametrize("share", [0.5, 0.97])  # pages are missing; a part of the last page is
def test_a_stack_that_is_cut_off_is_a_bad_image(tmp_path, compression, share):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for page in np.random.default_rng(1).integers(0, 256, (12, 40, 40)).astype(np.uint8):
            file.write(page, contiguous=False, metadata=None, compression=compression)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    source = opened(tmp_path)
    with pytest.raises(BadImage, match=r"a\.tif.* is not a readable image"):
        pixels_of(source, len(source) - 1)
    assert len(source) == (1 if share == 0.5 else 12)


def test_an_array_of_three_axes_is_a_volume_if_asked(tmp_path):
    """A picture with its colours last is none."""
    np.save(tmp_path / "a.npy", NOISE)
    np.save(tmp_path / "b.npy", np.zeros((20, 16, 3), np.uint8))
    source = opened(tmp_path, "every:2")
    assert names_of(source) == ["a.npy#z=0", "a.npy#z=2", "a.npy#z=4", "b.npy"]
    window = np.percentile(NOISE, [0.5, 99.5])
    np.testing.assert_allclose(pixels_of(source, 1), in_window(NOISE[2], *window), atol=1e-6)
    assert len(load_source(SourceSettings(train_dir=str(tmp_path)), None)) == 2


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)])
def test_a_dicom_series_is_sorted_along_its_normal(tmp_path, direction):
    """Two shuffled series in one folder, each in its own window, and a file that is in none."""
    first, second = NOISE[:5], NOISE[::-1][:4] + 1
    window = {"WindowCenter": 3000, "WindowWidth": 2001}
    save_series(tmp_path / "body", first, "1.2.3", direction=direction, **window)
    save_series(tmp_path / "body", second, "1.2.4", seed=1, direction=direction)
    save_series(tmp_path / "body", NOISE[:1], "1.2.5")
    source = opened(tmp_path)
    assert names_of(source) == [
        *[f"body/1.2.3#z={z}" for z in range(5)],
        *[f"body/1.2.4#z={z}" for z in range(4)],
        "body/1.2.5-0.dcm",
    ]
    for z in range(5):  # the window of the standard: 3000 - 0.5 -+ 2000 / 2, of the rescaled values
        np.testing.assert_allclose(pixels_of(source, z), in_window(2 * first[z] - 1000.0, 1999.5, 3999.5), atol=1e-6)
    percentiles = np.percentile(2.0 * second - 1000, [0.5, 99.5])
    for z in range(4):
        expected = in_window(2 * second[z] - 1000.0, *percentiles)
        np.testing.assert_allclose(pixels_of(source, 5 + z), expected, atol=1e-6)
    assert source.cell(9)["bytes"] is None  # as without --slices


def test_windows_that_differ_between_files_make_none(tmp_path):
    """Slices of one volume must be comparable. Inverted files are turned; padding is black."""
    values = NOISE.copy()
    values[:, 0] = -32768
    each = lambda z: {"WindowCenter": 100 * int(z), "WindowWidth": 50}  # noqa: E731
    save_series(tmp_path / "a", values, each=each, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-32768)
    source = opened(tmp_path)
    percentiles = np.percentile(2.0 * NOISE[:, 1:] - 1000, [0.5, 99.5])
    for z in range(6):
        seen = pixels_of(source, z)
        np.testing.assert_allclose(seen[1:], 1 - in_window(2 * NOISE[z, 1:] - 1000.0, *percentiles), atol=1e-6)
        assert not seen[0].any()


def save_frames(path, values: np.ndarray, each=None, shared=None, compressed=False, **elements):
    """``(frames, height, width)`` or ``(frames, height, width, 3)`` as one DICOM file. `each` and `shared` give the
    sequences of a frame and of all frames, as ``{"PlanePositionSequence": {"ImagePositionPatient": [...]}}``."""
    pydicom = pytest.importorskip("pydicom")

    def group(sequences: dict) -> "pydicom.Dataset":
        item = pydicom.Dataset()
        for name, content in sequences.items():
            inner = pydicom.Dataset()
            inner.update(content)
            setattr(item, name, [inner])
        return item

    about = pydicom.dataset.FileDataset(None, {}, preamble=b"\0" * 128)
    about.file_meta = pydicom.dataset.FileMetaDataset()
    about.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    about.SOPClassUID = about.file_meta.MediaStorageSOPClassUID = (
        pydicom.uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    )
    about.SOPInstanceUID = about.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    colours = values.ndim == 4
    about.NumberOfFrames, about.Rows, about.Columns = values.shape[:3]
    about.SamplesPerPixel, about.PhotometricInterpretation = (3, "RGB") if colours else (1, "MONOCHROME2")
    about.PlanarConfiguration = 0
    about.BitsAllocated = about.BitsStored = 8 * values.itemsize
    about.HighBit, about.PixelRepresentation = about.BitsStored - 1, int(values.dtype.kind == "i")
    if shared:
        about.SharedFunctionalGroupsSequence = [group(shared)]
    if each:
        about.PerFrameFunctionalGroupsSequence = [group(each(z)) for z in range(len(values))]
    about.PixelData = values.tobytes()
    for key, value in elements.items():
        setattr(about, key, value)
    if compressed:
        about.compress(pydicom.uid.RLELossless)
    pydicom.dcmwrite(path, about, enforce_file_format=True)


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_of_an_enhanced_file_are_sorted_rescaled_and_in_its_window(tmp_path, compressed):
    """Frames 2 mm apart in a shuffled order, each with a slope of its own, pixels twice as high as wide."""
    order = np.random.default_rng(0).permutation(len(NOISE))
    direction = [1, 0, 0, 0, 0, -1]  # the normal points along +y

    def each(frame):
        return {
            "PlanePositionSequence": {"ImagePositionPatient": [3, 2.0 * order[frame] - 7, 1]},
            "PixelValueTransformationSequence": {"RescaleSlope": 1 + order[frame], "RescaleIntercept": -100},
        }

    shared = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": direction},
        "PixelMeasuresSequence": {"PixelSpacing": [2, 1]},
        "FrameVOILUTSequence": {"WindowCenter": 3000, "WindowWidth": 2001},
    }
    save_frames(tmp_path / "scan.dcm", NOISE[order], each, shared, compressed)
    source = opened(tmp_path)
    assert names_of(source) == [f"scan.dcm#z={z}" for z in range(6)]
    for z in range(6):
        seen = pixels_of(source, z)  # twice as many rows
        expected = in_window((1 + z) * NOISE[z] - 100.0, 1999.5, 3999.5)
        assert seen.shape == (40, 16)
        np.testing.assert_allclose(
            (seen[1:-1:2] + seen[2::2])[:, 3] / 2, (expected[:-1] + expected[1:])[:, 3] / 2, atol=1e-5
        )


def test_frames_without_places_of_their_own_stay_in_the_order_of_the_file(tmp_path):
    """Films have no places. Times of the same planes share theirs: sorted, they would be mixed."""
    film = NOISE.astype(np.uint8)
    save_frames(tmp_path / "a.dcm", film)
    save_frames(
        tmp_path / "b.dcm",
        film,
        each=lambda z: {"PlanePositionSequence": {"ImagePositionPatient": [0, 0, -(z % 2)]}},
        shared={"PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}},
    )
    source = opened(tmp_path)
    assert len(source) == 12
    for z in range(6):
        seen = pixels_of(source, z)
        assert seen.dtype == np.uint8 and (seen == film[z]).all() and (pixels_of(source, 6 + z) == film[z]).all()
    without = load_source(SourceSettings(train_dir=str(tmp_path)), None)
    with pytest.raises(BadImage, match=r"dcm has 6 frames: --slices all takes each as an image"):
        open_images(without, Opening((8, 8), 1))


def test_frames_in_colours_and_damaged_files(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (3, 20, 16, 3)).astype(np.uint8)
    save_frames(tmp_path / "film.dcm", colours)
    save_frames(tmp_path / "many.dcm", NOISE, NumberOfFrames=10**9)  # asking for each of them would take days
    source = opened(tmp_path)
    assert names_of(source) == [*[f"film.dcm#z={z}" for z in range(3)], "many.dcm"]
    for z in range(3):
        assert (pixels_of(source, z) == colours[z].transpose(2, 0, 1)).all()
    assert "cannot hold: it is cut off" in source.volumes.faults[str(tmp_path / "many.dcm")]


def test_inverted_frames_with_padding(tmp_path):
    values = NOISE.copy()
    values[:, 0] = -32768
    save_frames(tmp_path / "a.dcm", values, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=-32768)
    percentiles = np.percentile(NOISE[:, 1:], [0.5, 99.5])
    source = opened(tmp_path)
    for z in range(6):
        seen = pixels_of(source, z)
        np.testing.assert_allclose(seen[1:], 1 - in_window(NOISE[z, 1:], *percentiles), atol=1e-6)
        assert not seen[0].any()


def test_frames_with_values_in_the_upper_bits(tmp_path):
    """As in files of one picture: 12 bits, stored from bit 4 on."""
    values = (NOISE % 4096).astype(np.uint16)
    save_frames(tmp_path / "a.dcm", values << 4, BitsStored=12, HighBit=15)
    source, percentiles = opened(tmp_path), np.percentile(values, [0.5, 99.5])
    for z in range(6):
        np.testing.assert_allclose(pixels_of(source, z), in_window(values[z], *percentiles), atol=1e-6)


def test_pages_in_colours_of_16_bits_are_in_the_window(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (4, 9, 8, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    source, window = opened(tmp_path), np.percentile(values, [0.5, 99.5])
    for z in range(4):
        np.testing.assert_allclose(pixels_of(source, z), in_window(values[z].transpose(2, 0, 1), *window), atol=1e-5)


# --- which slices ---


def test_empty_slices_are_counted_and_left_out(tmp_path):
    """A constant slice, one of a single bright pixel, and one with missing values only."""
    values = np.concatenate([np.zeros((3, 20, 16)), NOISE]).astype(np.float32)
    values[1, 3, 3], values[2] = 3000, np.nan
    save_axial(tmp_path / "scan.nii.gz", values)
    source = opened(tmp_path)
    assert names_of(source) == [f"scan.nii.gz#z={z}" for z in range(3, 9)]
    assert source.left_out.startswith("slices of 1 volume, 3 empty ones left out, unpacked in ")
    (tmp_path / "empty").mkdir()
    save_axial(tmp_path / "empty" / "a.nii", 0 * NOISE)
    with pytest.raises(UserError, match="all 6 slices of 1 volume are empty"):
        opened(tmp_path / "empty")


@pytest.mark.parametrize(
    "slices, expected", [("all", [*range(6)]), ("middle:2", [2, 3]), ("middle:9", [*range(6)]), ("every:4", [0, 4])]
)
def test_which_slices(tmp_path, slices, expected):
    save_axial(tmp_path / "scan.nii", NOISE)
    assert names_of(opened(tmp_path, slices)) == [f"scan.nii#z={z}" for z in expected]
    assert names_of(opened(tmp_path / "scan.nii", slices)) == [f"scan.nii#z={z}" for z in expected]


def test_neighbours_are_channels(tmp_path):
    """Also those that are not images themselves. At the ends the last one is repeated."""
    save_axial(tmp_path / "scan.nii.gz", NOISE)
    alone, source = opened(tmp_path), opened(tmp_path, "every:5", neighbour_slices=1)
    assert names_of(source) == ["scan.nii.gz#z=0", "scan.nii.gz#z=5"]
    slices = [pixels_of(alone, z) for z in range(6)]
    assert np.array_equal(pixels_of(source, 0), np.stack([slices[0], slices[0], slices[1]]))
    assert np.array_equal(pixels_of(source, 1), np.stack([slices[4], slices[5], slices[5]]))
    assert image_facts(source).channels == 3 and open_images(source, Opening((20, 16), 3)).read(0).shape == (3, 20, 16)


def test_labels_and_splits_are_those_of_the_files(tmp_path):
    for path in ("train/ill/a.nii.gz", "train/well/b.nii.gz", "test/ill/c.nii.gz", "test/well/d.nii.gz"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        save_axial(tmp_path / path, NOISE[:3])
    source = load_source(SourceSettings(train_dir=str(tmp_path), slices="all"), "train")
    assert source.class_names == ["ill", "well"] and source.dataset["label"][:] == [0, 0, 0, 1, 1, 1]
    assert names_of(source)[::3] == ["train/ill/a.nii.gz#z=0", "train/well/b.nii.gz#z=0"] and source.elsewhere == 2
    table = "file_name,age\na.nii.gz,40\n"
    (tmp_path / "train" / "ill" / "metadata.csv").write_text(table)
    source = opened(tmp_path / "train" / "ill")
    assert source.dataset["age"][:] == [40] * 3


def test_masks_are_volumes_beside_volumes(tmp_path):
    """Each slice has the same slice of the mask, upright as the volume is."""
    truth = (NOISE > 2000).astype(np.uint8) + (NOISE > 3000)
    for name, values in (("images", NOISE), ("masks", truth)):
        (tmp_path / name).mkdir()
        affine = np.diag([1.0, 1, 1, 1]) if name == "masks" else None  # another order of the same voxels
        stored = values.transpose(2, 1, 0)
        save_nifti(tmp_path / name / "scan.nii.gz", stored[::-1, ::-1] if affine is not None else stored, affine)
    settings = SourceSettings(
        train_dir=str(tmp_path), slices="every:2", problem_type="semantic_segmentation", train_split=None
    )
    source = load_source(settings, None)
    assert len(source) == 3
    labels, names = Masks().read_one(source, None)
    assert names == ["0", "1", "2"]
    images = Masks().open_images(source, labels, names, Opening((20, 16), 1))
    for row, z in enumerate((0, 2, 4)):
        assert np.array_equal(images.batch(0, [row])["masks"][0], truth[z])
    save_nifti(tmp_path / "masks" / "scan.nii.gz", truth.transpose(2, 1, 0)[..., :5])
    with pytest.raises(UserError, match=r"masks/scan.nii.gz' has 5 slices, and its volume 6 slices"):
        load_source(settings, None)


def test_files_beside_volumes_are_masks_by_their_names(tmp_path):
    for name in ("a.nii.gz", "a_seg.nii.gz", "b.nii", "b.mask.nii"):
        save_axial(tmp_path / name, NOISE)
    listing = list_place(tmp_path, volumes=True).without_masks()
    assert listing.images.to_pylist() == ["a.nii.gz", "b.nii"]
    assert str(list_place(tmp_path)) == (
        "4 files left out: 2 .nii (a volume: --slices all reads it), 2 .nii.gz (a volume: --slices all reads it)"
    )


# --- exactness ---


def test_several_folders_and_workers_change_nothing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_axial(tmp_path / name / f"{name}.nii.gz", NOISE if name == "a" else NOISE[::-1])
    places = [str(tmp_path / "a"), str(tmp_path / "b")]
    source = load_training_source(SourceSettings(train_dir=places, slices="all"))
    assert len(source) == 12 and np.array_equal(pixels_of(source, 2), pixels_of(source, 9))
    settings = {"seed": 1, "batch_size": 2, "total_batch_size": 4, "updates": range(4)}
    images = open_images(source, Opening((8, 8), 1))
    alone = dealt_batches(images, 1, **settings)
    for processes, workers in ((2, 0), (1, 2)):
        again = dealt_batches(open_images(source, Opening((8, 8), 1)), processes, num_workers=workers, **settings)
        assert len(again) == len(alone) == 8
        assert all(torch.equal(one["images"], other["images"]) for one, other in zip(alone, again, strict=True))


def test_a_resumed_run_has_the_same_slices(tmp_path):
    """The option decides the weights, and the checksum of the images tells slices apart. Older runs go on."""
    save_axial(tmp_path / "scan.nii.gz", NOISE)
    assert len({fingerprint(opened(tmp_path, slices)) for slices in ("all", "middle:3", "every:2")}) == 3
    assert fingerprint(opened(tmp_path)) == fingerprint(opened(tmp_path))
    given = PretrainArguments(train_dir="x", slices="middle:3", neighbour_slices=1).deciding_weights()
    assert (given["slices"], given["neighbour_slices"]) == ("middle:3", 1)
    assert not {"slices", "neighbour_slices"} & {*PretrainArguments(train_dir="x").deciding_weights()}


def test_a_compressed_volume_is_unpacked_once(tmp_path, cache, monkeypatch):
    """For all slices, processes and runs, until it changes. Without room on the disk it is kept in memory."""
    calls = []
    proxy = nibabel.arrayproxy.ArrayProxy
    unscaled = proxy.get_unscaled
    monkeypatch.setattr(proxy, "get_unscaled", lambda self: calls.append(1) or unscaled(self))
    save_axial(tmp_path / "scan.nii.gz", NOISE)
    for _ in range(2):
        source = opened(tmp_path)
        first = [pixels_of(source, z) for z in range(6)]
        volumes._kept_open.cache_clear()
    assert len(calls) == 1 and len(list(cache.glob("*.unpacked"))) == 1
    volumes._kept_open.cache_clear()
    next(cache.glob("*.unpacked")).write_bytes(b"cut off")
    assert np.array_equal([pixels_of(source, z) for z in range(6)], first) and len(calls) == 2
    save_axial(tmp_path / "scan.nii.gz", NOISE[::-1])
    assert np.array_equal(pixels_of(opened(tmp_path), 0), first[5]) and len(calls) == 3
    monkeypatch.setattr(volumes, "SPARE", 1 << 60)
    save_axial(tmp_path / "scan.nii.gz", NOISE)
    source = opened(tmp_path)
    assert np.array_equal([pixels_of(source, z) for z in range(6)], first) and len(calls) == 4
    assert "no room to unpack 1 of them in" in source.left_out


# --- what goes wrong ---


def cut_off(path):
    save_axial(path, NOISE)
    path.write_bytes(path.read_bytes()[:-500])


def promising(path):
    """The header of a volume of terabytes, whose values are not there."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 5000))
    header.set_data_dtype(np.int16)
    header["vox_offset"] = 352
    header["sform_code"], header["srow_x"][0], header["srow_y"][1], header["srow_z"][2] = 1, 1, 1, 1
    data = header.binaryblock + b"\0" * 100
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def long_header(path):
    """Terabytes of notes before the values."""
    save_axial(path, NOISE)
    data = bytearray(path.read_bytes())
    data[108:112] = np.float32(2e12).tobytes()
    path.write_bytes(data)


def huge_pixels(path):
    save_nifti(path, NOISE.transpose(2, 1, 0), np.diag([-1.0, -1e9, 1, 1]))


BAD = {
    "long header": ("a.nii", long_header, "has a header of 1,999,999,991,808 bytes"),
    "pixels of a million kilometres": ("a.nii", huge_pixels, "pixels, more than --max_image_pixels"),
    "cut off, compressed": ("a.nii.gz", cut_off, "not a readable image"),
    "cut off": ("a.nii", cut_off, "cannot hold: it is cut off"),
    "terabytes": ("a.nii", promising, "has 4,500,000,000,000 pixels, more than --max_image_pixels"),
    "terabytes, compressed": ("a.nii.gz", promising, "has 4,500,000,000,000 pixels, more than --max_image_pixels"),
    "text": ("a.nii", lambda path: path.write_text("no volume"), "not a readable image"),
    "four axes": ("a.nii", lambda path: save_nifti(path, np.zeros((4, 5, 6, 2))), "has the shape 4x5x6x2: save one"),
    "complex": ("a.nii", lambda path: save_nifti(path, np.zeros((4, 5, 6), np.complex64)), "of the type complex64"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_volume_is_a_bad_image_with_its_name(tmp_path, kind):
    name, write, message = BAD[kind]
    write(tmp_path / name)
    save_axial(tmp_path / "good.nii", NOISE)
    source = opened(tmp_path)
    assert len(source) == 7 and names_of(source)[0] == name
    with pytest.raises(BadImage, match=re.escape(str(tmp_path / name)) + ".*" + re.escape(message)):
        open_images(source, Opening((8, 8), 1))
    images = open_images(source, Opening((8, 8), 1, ImageSettings(on_bad_image="skip")))
    assert torch.equal(images.batch(0, [0])["images"], images.batch(0, [1])["images"])
    assert images.skipped.tolist() == [True] + [False] * 6
    assert fingerprint(source)


def test_the_limit_counts_what_is_read_into_memory(tmp_path):
    """All of a NIfTI file, but one page of a stack, and one slice of an array."""
    save_axial(tmp_path / "a.nii.gz", NOISE)
    tifffile.imwrite(tmp_path / "b.tif", NOISE.astype(np.uint16), photometric="minisblack")
    np.save(tmp_path / "c.npy", NOISE)
    assert len(opened(tmp_path, max_image_pixels=NOISE.size)) == 18
    source = opened(tmp_path, max_image_pixels=NOISE.size - 1)
    assert len(source) == 13 and list(source.volumes.faults) == [str(tmp_path / "a.nii.gz")]
    assert len(opened(tmp_path, max_image_pixels=NOISE[0].size - 1)) == 3


def test_a_damaged_page_is_a_bad_image_alone(tmp_path):
    save_series(tmp_path, NOISE)
    damaged = sorted(tmp_path.glob("*.dcm"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    source, bad = opened(tmp_path), []
    for z in range(6):
        try:
            pixels_of(source, z)
        except BadImage as error:
            bad.append(str(error))
    assert len(source) == 6 and len(bad) == 1 and str(damaged) in bad[0]


def test_nibabel_is_asked_for(tmp_path, monkeypatch):
    save_axial(tmp_path / "scan.nii.gz", NOISE)
    monkeypatch.setattr(slices_module, "has_nibabel", lambda: False)
    with pytest.raises(UserError, match=r"scan.nii.gz' is NIfTI: pip install 'modeling-mae\[nifti\]' to read it"):
        opened(tmp_path)
    with pytest.raises(UserError, match=r"scan.nii.gz' is a volume: add --slices all"):
        load_source(SourceSettings(train_dir=str(tmp_path / "scan.nii.gz")), None)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slices": "some"}, "slices 'some' does not work: give all, middle:32 or every:4"),
        ({"slices": "middle:0"}, "slices 'middle:0' does not work"),
        ({"neighbour_slices": 1}, "neighbour_slices 1 means nothing without slices"),
        ({"slices": "all", "neighbour_slices": -1}, "neighbour_slices -1 does not work: give a number of slices"),
        ({"slices": "all", "streaming": True}, "slices 'all' and streaming True exclude each other"),
        ({"slices": "all", "train_dir": None}, "slices 'all' are of files in a folder: give it with --train_dir"),
        ({"slices": "all", "train_dir": None, "dataset_name": "cifar10"}, "slices 'all' and dataset_name 'cifar10'"),
    ],
)
@pytest.mark.parametrize("kind", [PretrainArguments, EvalArguments])
def test_options_that_cannot_work(options, message, kind, tmp_path):
    given = {"train_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "report_to": ["none"], **options}
    if kind is EvalArguments:
        given |= {"from_scratch": True, "n_partial": None, "config_name": "vit_tiny"}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        kind(**given).check()


def test_slices_are_of_files(tmp_path):
    save_axial(tmp_path / "scan.nii", NOISE)
    with pytest.raises(UserError, match="slices 'all' are of image files"):
        load_source(SourceSettings(slices="all"))
    with pytest.raises(UserError, match="slices 'all' are of files in a folder: give its path"):
        ApplySettings(slices="all").open(None, [tmp_path / "scan.nii"])


# --- features ---


def test_features_per_volume_are_the_means_of_slices(tmp_path):
    """In memory, in a file made of several parts, and as the bank of neighbours."""
    checkpoint, scans = save_checkpoint(tmp_path / "checkpoint", image_size=16, patch_size=8), tmp_path / "scans"
    for path, values in (("ill/a.nii.gz", NOISE), ("ill/b.nii.gz", NOISE[::-1][:3]), ("well/c.nii", NOISE[1:5])):
        (scans / path).parent.mkdir(parents=True, exist_ok=True)
        save_axial(scans / path, values)
    options = {"num_workers": 0, "slices": "all", "batch_size": 2}
    slices = extract_features(checkpoint, scans, **options)
    assert len(slices) == 13 and slices.files[6] == "ill/b.nii.gz#z=0" and slices.values.std(0).mean() > 0.001
    means = [slices.values[start:end].mean(0, dtype=np.float64) for start, end in ((0, 6), (6, 9), (9, 13))]
    found = slices.per_volume()
    np.testing.assert_allclose(found.values, means, atol=1e-6)
    assert found.files == ["ill/a.nii.gz", "ill/b.nii.gz", "well/c.nii"] and found.labels == ["ill", "ill", "well"]
    assert found.rows == [3, 7, 11]
    output = Output(tmp_path / "out.parquet", per_volume=True)
    write_features(str(checkpoint), str(scans), output, ApplySettings(**options))
    written = load_features(tmp_path / "out.parquet")
    np.testing.assert_allclose(written.values, means, atol=1e-6)
    assert (written.files, written.rows, written.labels) == (found.files, found.rows, found.labels)
    output = Output(tmp_path / "out.npy", per_volume=True)
    write_features(str(checkpoint), str(scans), output, ApplySettings(**options))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), means, atol=1e-6)
    queries = query_features(written, scans / "well")  # slices, as the features were made of
    np.testing.assert_allclose(queries.values, slices.values[9:], atol=1e-6)
    assert (tmp_path / "out.csv").read_text().split() == [
        "row,file,label",
        "3,ill/a.nii.gz,ill",
        "7,ill/b.nii.gz,ill",
        "11,well/c.nii,well",
    ]


def test_the_command_asks_for_slices(tmp_path):
    """`mae features` gives its options on, and a row for each volume needs slices."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", image_size=16, patch_size=8, num_channels=3)
    (tmp_path / "scans").mkdir()
    save_axial(tmp_path / "scans" / "a.nii", NOISE)
    words = [str(checkpoint), str(tmp_path / "scans"), str(tmp_path / "out.parquet"), "--per", "volume"]
    words += ["--dataloader_num_workers", "0"]
    parser = ArgumentParser()
    features_command.add_arguments(parser)
    with pytest.raises(UserError, match="per volume needs slices: add --slices all"):
        features_command.run(parser.parse_args(words))
    features_command.run(parser.parse_args([*words, "--slices", "middle:4", "--neighbour_slices", "1"]))
    written = load_features(tmp_path / "out.parquet")
    options = {"slices": "middle:4", "neighbour_slices": 1}
    expected = extract_features(checkpoint, tmp_path / "scans", num_workers=0, **options).values
    np.testing.assert_allclose(written.values, expected.mean(0, keepdims=True), atol=1e-6)
    assert written.files == ["a.nii"] and options.items() <= written.about["place"].items()


def test_labelled_sets_of_slices(tmp_path):
    for split, name in (("train", "a"), ("test", "b")):
        for label, values in (("low", NOISE[:3]), ("high", NOISE[3:])):
            (tmp_path / split / label).mkdir(parents=True)
            save_axial(tmp_path / split / label / f"{name}.nii.gz", values)
    sets = load_labelled_sets(
        SourceSettings(train_dir=str(tmp_path), slices="all"),
        Opening((8, 8), 1),
        None,
        class_names=None,
        main_process_first=nullcontext,
        say=lambda *text: None,
    )
    assert (len(sets.training), len(sets.evaluation), sets.class_names) == (6, 6, ["high", "low"])


# --- whole runs ---


def scans_in(folder):
    """Bright above and dark below, with stripes: something that can be learnt."""
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            for label, turned in (("lying", False), ("standing", True)):
                z, y, x = np.indices((8, 20, 20))
                values = 100 * (x if turned else y) + 40 * z + 300 * (y % 4 < 2) + number + 10
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                save_axial(folder / split / label / f"{split}{number}.nii.gz", values.astype(np.int16))
    return folder


@pytest.mark.slow
def test_runs_on_slices(tmp_path, recipe):
    """A run that goes on in two processes is the same run, and needs the same slices. Classes are learnt too."""
    scans = scans_in(tmp_path / "scans")
    words = [recipe, "--train_dir", scans, "--slices", "all", "--neighbour_slices", 1, "--max_train_steps", 8]
    words += ["--config_overrides", "num_channels=3", "--max_train_samples", 64, "--checkpointing_steps", 4]
    words += ["--image_cache", "off"]
    output = run(*words, "--output_dir", tmp_path / "whole")
    assert "64 images" in output and "slices of 8 volumes, 0 empty ones left out" in output
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(half / "checkpoint-8")
    refused = run(*words, "--output_dir", half, "--resume_from_checkpoint", "auto", "--slices", "middle:6", code=1)
    assert "slices all -> middle:6" in refused
    words += ["--output_dir", half, "--resume_from_checkpoint", "auto"]
    run(*words, "--dataloader_num_workers", 1, **TWO_PROCESSES)
    assert_same_run(tmp_path / "whole", half)
    output = run(
        *("--model_name_or_path", half, "--train_dir", scans, "--slices", "every:2", "--neighbour_slices", 1),
        *("--n_partial", 0, "--num_train_epochs", 2, "--warmup_epochs", 0, "--total_batch_size", 8),
        *("--per_device_train_batch_size", 8, "--report_to", "none"),
        *("--dataloader_num_workers", 0, "--output_dir", tmp_path / "eval"),
        script="run_eval.py",
    )
    assert "slices of 8 volumes, 0 empty ones left out" in output and "32 training" in output


@pytest.mark.slow
def test_a_real_head(tmp_path):
    """The MNI152 template that nilearn brings: a minute of pre-training on its slices."""
    nilearn = pytest.importorskip("nilearn")
    (template,) = (Path(nilearn.__file__).parent / "datasets" / "data").glob("mni_icbm152_t1_*.nii.gz")
    whole = nibabel.load(template)
    assert nibabel.aff2axcodes(whole.affine) == ("R", "A", "S")
    source, values = opened(template), whole.get_fdata()
    window = np.percentile(values[:, ::2, ::2], [0.5, 99.5])
    for row in (0, 50, len(source) - 1):
        z = int(names_of(source)[row].partition("#z=")[2])
        upright = values[::-1, ::-1, z].T  # left to the right, back to the bottom
        np.testing.assert_allclose(pixels_of(source, row), in_window(upright, *window), atol=0.02)
    size = "image_size=64 patch_size=8 hidden_size=96 num_hidden_layers=4 num_attention_heads=4 intermediate_size=256"
    decoder = "decoder_hidden_size=64 decoder_num_hidden_layers=1 decoder_num_attention_heads=4"
    output = run(
        *("own_images", "--train_dir", template, "--slices", "all", "--max_hours", 0.017, "--report_to", "none"),
        *("--config_overrides", *size.split(), *decoder.split(), "decoder_intermediate_size=128"),
        *("--output_dir", tmp_path / "head"),
    )
    _, history = weights_and_history(tmp_path / "head")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0], output
    assert (tmp_path / "head" / "reconstruction.png").exists()
