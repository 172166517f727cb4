"""Masks: how they are read, which belong to which image, and that they are cropped as their images."""

import copy
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TINY, TINY_GRAY
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from modeling_mae import MAEConfig, MAEModel
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.find import scenes
from modeling_mae.data.find.joined import load_training_source
from modeling_mae.data.find.sources import SourceSettings, load_source
from modeling_mae.data.read.faults import BadImage
from modeling_mae.data.read.masks import KeptMask, decode_mask
from modeling_mae.data.serve.images import ImageSettings, Opening
from modeling_mae.data.serve.masked import IGNORED, ScaledCrop, crop_pair
from modeling_mae.errors import UserError
from modeling_mae.evaluation.dense import dense_metrics
from modeling_mae.evaluation.mask_prediction import mask_files
from modeling_mae.evaluation.reader import Reader
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation
from modeling_mae.tasks import masks, windows
from modeling_mae.tasks.mask_pictures import palette
from modeling_mae.tasks.masks import Masks, MaskSettings, class_weights
from modeling_mae.tasks.windows import logits_by_rows, logits_of, starts_of
from modeling_mae.training.augment import BatchTransform


def encoded(array: np.ndarray, format: str = "PNG", mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, format)
    return file.getvalue()


NUMBERS = np.array([[0, 1, 2], [3, 255, 7]], np.uint8)


# --- files ---


def test_numbers_of_every_kind_of_file(tmp_path):
    tiff, npy = tmp_path / "a.tif", tmp_path / "a.npy"
    Image.fromarray(NUMBERS).save(tiff)
    np.save(npy, NUMBERS[None].astype(np.float32))  # a plane too many, and whole numbers as fractions
    for path in (tiff, npy):
        assert decode_mask(None, str(path)).tolist() == NUMBERS.tolist()
    assert decode_mask(encoded(NUMBERS), None).tolist() == NUMBERS.tolist()
    assert decode_mask(encoded(NUMBERS.astype(np.uint16) * 200), None).tolist() == (NUMBERS * 200.0).tolist()
    assert decode_mask(encoded(NUMBERS > 1), None).tolist() == (NUMBERS > 1).tolist()
    palette_image = Image.fromarray(NUMBERS, "P")
    palette_image.putpalette(palette(256).tobytes())
    file = io.BytesIO()
    palette_image.save(file, "PNG")
    assert decode_mask(file.getvalue(), None).tolist() == NUMBERS.tolist()
    colours = np.array([[[255, 0, 0], [0, 0, 255], [16, 32, 48], [0, 0, 0]]], np.uint8)
    assert decode_mask(encoded(colours), None).tolist() == [[0x1FF0000, 0x10000FF, 0x1102030, 0]]


@pytest.mark.parametrize("numbers", [[0, 1], [3, 255, 70_000], [-1, 4]])
def test_masks_in_memory_are_whole_again(numbers):
    generator = np.random.default_rng(0)
    noise = generator.choice(numbers, (30, 40)).astype(np.int32)
    regions = np.array(numbers, np.int32)[(np.arange(30)[:, None] // 10 + np.arange(40) // 20) % len(numbers)]
    for mask in (noise, regions):
        kept = KeptMask.of(mask)
        assert np.array_equal(kept.whole(), mask)
    assert kept.nbytes < mask.size / 2  # runs


def test_each_mask_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(masks, "decode_mask", lambda data, path, most: decoded.append(path) or decode_mask(data, path))
    for i in range(3):
        write(tmp_path / "images" / f"{i}.png", IMAGE)
        write(tmp_path / "masks" / f"{i}.png", MASK)
    source = source_again(tmp_path)
    labels, names = Masks().read(source)
    images = Masks().open_images(source, labels, names, Opening((4, 4), 3))
    numbers = [images.read_mask(i).tolist() for i in range(3)]
    assert len(decoded) == 3 and source.masks is None
    again = Masks().open_images(source, labels, names, Opening((4, 4), 3))  # nobody has read these
    assert [again.read_mask(i).tolist() for i in range(3)] == numbers and len(decoded) == 6


def test_joined_folders_may_name_their_classes_in_another_order(tmp_path):
    for folder, names, number in (("a", "ground\nleaf\n", 1), ("b", "leaf\nground\n", 0)):
        write(tmp_path / folder / "train" / "images" / "0.png", IMAGE)
        write(tmp_path / folder / "train" / "masks" / "0.png", np.where(MASK > 0, number, 1 - number).astype(np.uint8))
        (tmp_path / folder / "classes.txt").write_text(names)
    places = [str(tmp_path / folder) for folder in ("a", "b")]
    source = load_training_source(SourceSettings(train_dir=places, problem_type="semantic_segmentation"))
    labels, names = Masks().read(source)
    images = Masks().open_images(source, labels, names, Opening((4, 4), 3))
    for i in range(2):
        assert images.read_mask(i).tolist() == (MASK > 0).tolist()


def test_masks_that_are_refused():
    noise = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    with pytest.raises(BadImage, match="is a JPEG file, which blurs the numbers of a mask: save masks as PNG"):
        decode_mask(encoded(noise, "JPEG"), "m.jpg")
    file = io.BytesIO()
    np.save(file, np.full((4, 4), 0.5))
    with pytest.raises(BadImage, match="is a mask with fractions"):
        decode_mask(file.getvalue(), "m.npy")
    file = io.BytesIO()
    np.save(file, np.zeros((4, 4, 3), int))
    with pytest.raises(BadImage, match="is a mask of shape 4x4x3"):
        decode_mask(file.getvalue(), "m.npy")
    file = io.BytesIO()
    pages = [Image.fromarray(NUMBERS), Image.fromarray(NUMBERS + 1)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(BadImage, match="m.tif is a mask of 2 pages: save one number a pixel"):
        decode_mask(file.getvalue(), "m.tif")


@pytest.mark.parametrize("suffix", ["png", "tif", "npy", "npz"])
def test_masks_may_be_as_large_as_images(tmp_path, suffix):
    source_of(tmp_path / "set", [MASK], IMAGE)
    (tmp_path / "set" / "masks" / "0.png").unlink()
    file = tmp_path / "set" / "masks" / f"0.{suffix}"
    if suffix in ("npy", "npz"):
        np.save(file, MASK) if suffix == "npy" else np.savez_compressed(file, MASK)
    else:
        write(file, MASK)
    wanted = {"train_dir": str(tmp_path / "set"), "problem_type": "semantic_segmentation"}
    assert Masks().read(load_source(SourceSettings(**wanted, max_image_pixels=48)))[0].tolist() == [[30, 18]]
    with pytest.raises(UserError, match=f"0.{suffix} has 48 pixels, more than --max_image_pixels 47"):
        Masks().read(load_source(SourceSettings(**wanted, max_image_pixels=47)))


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


IMAGE = np.full((6, 8, 3), 90, np.uint8)
MASK = np.zeros((6, 8), np.uint8)
MASK[:, :3] = 1


@pytest.mark.parametrize(
    ("images", "masks", "options"),
    [
        (["train/images/a.jpg", "train/images/b.jpg"], ["train/masks/a.png", "train/masks/b.png"], {}),
        (["images/train/a.jpg", "images/val/b.jpg"], ["annotations/train/a.png", "annotations/val/b.png"], {}),
        (["train/a.jpg", "train/b.jpg"], ["train/a_mask.png", "train/b.mask.png"], {}),
        (["train/a.jpg", "train/sub/b.jpg"], ["elsewhere/train/a.png", "elsewhere/train/sub/b.tif"], "elsewhere"),
        (["t/train/good/a.png", "t/test/bad/b.png"], ["t/ground_truth/bad/b_mask.png"], {}),
    ],
)
def test_pairs_in_folders(tmp_path, images, masks, options):
    top = tmp_path / "data"
    for name in images:
        write(top / name, IMAGE)
    outside = isinstance(options, str)
    for name in masks:
        write((tmp_path if outside else top) / name, MASK)
    extra = {"mask_dir": str(tmp_path / options)} if outside else {}
    wanted = SourceSettings(train_dir=str(top), problem_type="semantic_segmentation", **extra)
    source = load_source(wanted, None)
    pairs = {Path(source.cell(i)["path"]).stem: source.mask_cell(i)["path"] for i in range(len(source))}
    named = {Path(mask).name.split(".")[0].removesuffix("_mask"): mask for mask in masks}
    assert {
        stem: Path(path).relative_to(tmp_path if outside else top).as_posix() for stem, path in pairs.items()
    } == named
    assert ("1 of 2 images have no mask" in source.left_out) == (len(masks) < len(images))
    # Pre-training takes the images and never the masks.
    plain = load_source(SourceSettings(train_dir=str(top)), None)
    assert sorted(Path(plain.cell(i)["path"]).stem for i in range(len(plain))) == ["a", "b"]


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_pairs_in_tar_files_and_parquet(tmp_path):
    image, mask = encoded(IMAGE), encoded(MASK)
    (tmp_path / "tars").mkdir()
    tar_of(tmp_path / "tars" / "0.tar", {"a.png": image, "a.mask.png": mask, "b.png": image})
    tar_of(tmp_path / "tars" / "1.tar", {"c.png": image, "c.mask.png": encoded(MASK[::-1].copy() * 2)})
    wanted = SourceSettings(train_dir=str(tmp_path / "tars"), streaming=True, problem_type="semantic_segmentation")
    source = load_source(wanted, None)
    assert len(source) == 2 and "1 without a mask" in source.left_out
    assert [decode_mask(**cell_arguments(source.mask_cell(i))).max() for i in range(2)] == [1, 2]
    assert len(load_source(SourceSettings(train_dir=str(tmp_path / "tars"), streaming=True), None)) == 3

    kinds = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    rows = {"image": [{"bytes": image, "path": None}] * 3, "annotation": [{"bytes": mask, "path": None}, None, None]}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "table" / "train.parquet")
    for streaming, count in ((False, 1), (True, 3)):
        place = SourceSettings(
            train_dir=str(tmp_path / "table"), streaming=streaming, problem_type="semantic_segmentation"
        )
        source = load_source(place)
        assert len(source) == count
        assert decode_mask(**cell_arguments(source.mask_cell(0))).tolist() == MASK.tolist()
    assert load_source(SourceSettings(train_dir=str(tmp_path / "table"))).image_column == "image"


def cell_arguments(cell: dict) -> dict:
    return {"data": cell["bytes"], "path": cell["path"]}


# --- classes ---


def source_of(folder: Path, masks: list[np.ndarray], image: np.ndarray | None = None):
    for i, mask in enumerate(masks):
        write(folder / "images" / f"{i}.png", np.full((*mask.shape, 3), 9, np.uint8) if image is None else image)
        write(folder / "masks" / f"{i}.png", mask)
    return source_again(folder)


def source_again(folder: Path):
    return load_source(SourceSettings(train_dir=str(folder), problem_type="semantic_segmentation"), None)


def test_classes_and_their_pixels_by_hand(tmp_path):
    source = source_of(tmp_path, [np.uint8([[0, 0, 4], [4, 4, 255]]), np.uint8([[7, 0, 0], [0, 0, 0]])])
    labels, names = Masks().read(source)
    assert names == ["0", "4", "7"]
    assert labels.tolist() == [[2, 3, 0], [5, 0, 1]]
    labels, names = Masks(MaskSettings(mask_values="binary")).read(source)
    assert (names, labels.tolist()) == (["ground", "thing"], [[2, 4], [5, 1]])
    labels, names = Masks(MaskSettings(ignore_index=0)).read(source)
    assert (names, labels.tolist()) == (["4", "7", "255"], [[3, 0, 1], [0, 1, 0]])
    (tmp_path / "classes.json").write_text(json.dumps({"0": "ground", "4": "tree", "7": "car", "255": "sky"}))
    # A model that learned the numbers without names knows them again.
    assert Masks().read(source_again(tmp_path), ["0", "4", "7"])[0].tolist() == [[2, 3, 0], [5, 0, 1]]
    labels, names = Masks().read(source_again(tmp_path))
    assert (names, labels.tolist()) == (["ground", "tree", "car", "sky"], [[2, 3, 0, 1], [5, 0, 1, 0]])
    (tmp_path / "classes.json").unlink()
    (tmp_path / "classes.txt").write_text("\ufeffground\r\na\nb\nc\ntree\nd\ne\ncar\n")
    assert Masks().read(source_again(tmp_path))[1] == ["ground", "a", "b", "c", "tree", "d", "e", "car"]


def test_colours_are_classes_by_their_names(tmp_path):
    """Blue, whose number in 24 bits is 255, is a class as any other."""
    mask = np.uint8([[[0, 0, 0], [0, 0, 255]], [[0, 255, 0], [0, 255, 0]]])
    source = source_of(tmp_path, [mask], IMAGE[:2, :2])
    labels, names = Masks().read(source)
    assert (names, labels.tolist()) == (["0", "#0000ff", "#00ff00"], [[1, 1, 2]])
    binary, _ = Masks(MaskSettings(mask_values="binary")).read(source)
    assert binary.tolist() == [[1, 3]]
    (tmp_path / "classes.json").write_text('{"#000000": "ground", "#00FF00": "leaf", "#0000ff": "water"}')
    labels, names = Masks().read(source_again(tmp_path))
    assert (names, labels.tolist()) == (["ground", "water", "leaf"], [[1, 1, 2]])
    (tmp_path / "classes.json").write_text('{"ground": 0, "leaf": "#00ff00", "water": "#0000ff"}')
    assert Masks().read(source_again(tmp_path))[1] == names


def test_black_and_white_masks_have_two_classes(tmp_path):
    labels, names = Masks().read(source_of(tmp_path, [np.uint8([[0, 255], [255, 255]])]))
    assert (names, labels.tolist()) == (["0", "255"], [[1, 3]])


def test_masks_that_no_training_can_use(tmp_path):
    with pytest.raises(UserError, match="has 2x3 pixels, and its image 6x8: give them one size"):
        Masks().read(source_of(tmp_path / "size", [np.uint8([[0, 1, 0], [1, 1, 0]])], IMAGE))
    counted = [np.arange(n, dtype=np.uint8)[None].repeat(2, 0) for n in range(9, 30)]
    source = source_of(tmp_path / "things", counted)
    with pytest.raises(UserError, match="hold 1, 2, 3, ... up to 8 to 28, which look like numbers of things"):
        Masks().read(source)
    assert len(Masks(MaskSettings(mask_values="classes")).read(source)[1]) == 29
    assert Masks(MaskSettings(mask_values="binary")).read(source)[1] == ["ground", "thing"]
    with pytest.raises(UserError, match="1 of 2 masks have the number 5, which no training mask has; the"):
        Masks().read(source_of(tmp_path / "strange", [np.uint8([[0, 1]]), np.uint8([[0, 5]])]), ["0", "1"])
    source_of(tmp_path / "negative", [np.uint8([[0, 1]])])
    np.save(tmp_path / "negative" / "masks" / "0.npy", np.array([[-1, 1]]))
    (tmp_path / "negative" / "masks" / "0.png").unlink()
    source = source_again(tmp_path / "negative")
    with pytest.raises(UserError, match="have the number -1: if its pixels have no class, give --ignore_index -1"):
        Masks(MaskSettings(mask_values="binary")).read(source)
    assert Masks(MaskSettings(mask_values="binary", ignore_index=-1)).read(source)[0].tolist() == [[0, 1]]
    with pytest.raises(UserError, match="a model needs two classes"):
        Masks().read(source_of(tmp_path / "one", [np.zeros((2, 2), np.uint8)]))
    (tmp_path / "one" / "classes.json").write_text('{"0": "a", "1": "a"}')
    with pytest.raises(UserError, match="names no classes"):
        Masks().read(
            load_source(SourceSettings(train_dir=str(tmp_path / "one"), problem_type="semantic_segmentation"))
        )


def test_bad_images_are_left_to_where_they_are_opened(tmp_path):
    source_of(tmp_path, [np.uint8([[0, 1, 1]]), np.uint8([[0, 0, 1]])])
    (tmp_path / "images" / "0.png").write_bytes(b"no image")
    source = source_again(tmp_path)
    labels, names = Masks().read(source)
    assert labels.tolist() == [[1, 2], [2, 1]]
    with pytest.raises(BadImage, match="0.png is not a readable image"):
        Masks().open_images(source, labels, names, Opening((1, 3), 3))
    skipping = ImageSettings(on_bad_image="skip")
    images = Masks().open_images(source, labels, names, Opening((1, 3), 3, skipping))
    assert images.batch(0, [0])["masks"].tolist() == [[[0, 0, 1]]] and images.skipped.tolist() == [True, False]


def test_an_image_without_known_pixels_is_not_among_the_worst(tmp_path, recwarn):
    source = source_of(tmp_path, [np.uint8([[0, 1, 1]]), np.uint8([[255, 255, 255]])])
    task = Masks()
    labels, names = task.read(source)
    images = task.open_images(source, labels, names, Opening((1, 3), 3))
    confusion = np.array([[[1, 0], [1, 1]], [[0, 0], [0, 0]]])

    class Said(torch.nn.Linear):
        class config:
            image_height_width = (1, 3)

        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.zeros(len(pixel_values), 2, 1, 3))

    figure = task.examples(Said(1, 1), lambda batch, size: batch["images"], images, {"confusion": confusion}, names)
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["image 0, mean IoU 50.0"]
    assert not [warning for warning in recwarn if "empty slice" in str(warning.message)]


def test_class_weights_by_hand():
    # Shares 0.9, 0.09 and 0.01: the median over each, at most 10; a class without a pixel has 1.
    assert class_weights(torch.tensor([[900, 60, 0, 0], [0, 30, 10, 0]])) == pytest.approx([0.1, 1.0, 9.0, 1.0])


def test_a_head_goes_on_only_as_it_was(tmp_path):
    names = {0: "a", 1: "b"}
    trained = MAEForSemanticSegmentation(MAEConfig(**TINY, id2label=names))
    trained.save_pretrained(tmp_path)
    checkpoint, labels = open_checkpoint(tmp_path), torch.tensor([[3, 4]])
    for settings, classes, note in (
        (MaskSettings(), ["a", "b"], ""),
        (MaskSettings(), ["a", "c"], "the checkpoint's head has other classes: it starts anew"),
        (MaskSettings(segmentation_head="multiscale"), ["a", "b"], "head is linear, not multiscale: it starts anew"),
    ):
        said: list[str] = []
        config = copy.deepcopy(checkpoint.config)
        model = Masks(settings).new_model(config, checkpoint, classes, 1, labels, said.append)
        assert note in "".join(said) and bool(said) == bool(note)
        weights = model.segmenter.state_dict().get("classifier.weight")
        assert torch.equal(weights, trained.segmenter.classifier.weight) == (not note)
        assert torch.equal(model.mae.layernorm.weight, trained.mae.layernorm.weight)


# --- crops ---


def test_masks_follow_their_images(tmp_path):
    """Where every pixel of the image says its class, the crop of the image tells the crop of the mask."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 5, (6, 5, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    for i, mask in enumerate(blocks):
        write(tmp_path / "images" / f"{i}.png", (mask * 50)[..., None].repeat(3, 2))
        write(tmp_path / "masks" / f"{i}.png", mask)
    source = load_source(SourceSettings(train_dir=str(tmp_path), problem_type="semantic_segmentation"), None)
    task = Masks(MaskSettings(quarter_turns=True))
    labels, names = task.read(source)
    images = task.open_images(source, labels, names, Opening((16, 16), 3))
    view = images.view(ScaledCrop(0, (16, 16), [0.5, 2.0], True, True, [0.9] * 3))
    kinds = set()
    for epoch in range(6):
        batch = view.batch(epoch, list(range(6)))
        pixels, masks = batch["images"].float().mean(1), batch["masks"]
        known = masks != IGNORED
        # Between two blocks the resized image has values of its own.
        agree = ((pixels / 50 - masks).abs() < 0.3)[known].float().mean().item()
        assert agree > 0.75, agree
        assert (pixels[~known] - 0.9 * 255).abs().max() <= 1 if (~known).any() else True
        again = view.batch(epoch, list(range(6)))
        assert torch.equal(again["masks"], masks) and torch.equal(again["images"], batch["images"])
        kinds.add(tuple(masks.flatten().tolist()))
    assert len(kinds) == 6


def test_a_box_over_the_edge_by_hand():
    image, mask = torch.arange(6).view(1, 2, 3).float(), torch.arange(6, dtype=torch.uint8).view(2, 3)
    seen, known = crop_pair(image, mask, [-1, 1, 4, 3], (4, 3), torch.tensor([50.0]))
    assert known.tolist() == [[255] * 3, [1, 2, 255], [4, 5, 255], [255] * 3]
    assert seen[0].tolist() == [[50] * 3, [1, 2, 50], [4, 5, 50], [50] * 3]
    _, twice = crop_pair(image, mask, [0, 0, 2, 3], (4, 6), torch.tensor([0.0]))
    assert twice.tolist() == mask.repeat_interleave(2, 0).repeat_interleave(2, 1).tolist()


def test_one_fill_serves_any_number_of_bands():
    image, mask = torch.ones(5, 2, 2), torch.zeros(2, 2, dtype=torch.uint8)
    seen, _ = crop_pair(image, mask, [0, 0, 3, 2], (3, 2), torch.tensor([50.0]))
    assert seen[:, 2].tolist() == [[50.0, 50.0]] * 5 and seen[:, :2].tolist() == image.tolist()


def test_boxes_lie_inside_where_they_fit():
    crop = ScaledCrop(0, (10, 20), [0.5, 2.0], True, False, [0.5])
    boxes, flips = crop(0, list(range(500)), 15, 100)
    top, left, height, width = boxes.T
    assert (height.min(), height.max()) == (5, 20) and (width.min(), width.max()) == (10, 40)
    assert ((left >= 0) & (left + width <= 100)).all()
    fits = height <= 15
    assert ((top >= 0) & (top + height <= 15))[fits].all() and fits.any()
    assert ((top <= 0) & (top + height >= 15))[~fits].all() and not fits.all()
    assert 200 < flips.sum() < 300
    assert set(ScaledCrop(0, (8, 8), [1, 1], False, True, [0.5]).turns(0, list(range(50)))) == {0, 1, 2, 3}
    assert set(crop.turns(0, list(range(50)))) == {0}


# --- evaluation ---


def test_figures_are_those_of_scikit_learn():
    generator = np.random.default_rng(1)
    labels = torch.from_numpy(generator.integers(0, 4, (5, 6, 7)))
    logits = torch.from_numpy(generator.normal(size=(5, 4, 6, 7))).float()
    logits.scatter_add_(1, labels[:, None], torch.full((5, 1, 6, 7), 1.5))
    labels[0, :3] = IGNORED
    task = Masks()
    columns = {name: value.numpy() for name, value in task.columns(logits, labels).items()}
    results = task.results(columns, 4)
    known = labels != IGNORED
    truth, said = labels[known].numpy(), logits.argmax(1)[known].numpy()
    assert results["confusion_matrix"] == confusion_matrix(truth, said).tolist()
    assert results["per_class_iou"] == pytest.approx(jaccard_score(truth, said, average=None).tolist())
    assert results["mean_iou"] == pytest.approx(jaccard_score(truth, said, average="macro"))
    assert results["per_class_dice"] == pytest.approx(f1_score(truth, said, average=None).tolist())
    assert results["pixel_accuracy"] == pytest.approx((truth == said).mean())
    low, high = results["mean_iou_interval"]
    assert low < results["mean_iou"] < high


def test_figures_by_hand():
    """Two of three classes are there. Of class 0 two pixels of three are found, of class 1 one of one."""
    labels = torch.tensor([[[0, 0], [0, 1]]])
    logits = 10 * torch.nn.functional.one_hot(torch.tensor([[[0, 0], [1, 1]]]), 3).permute(0, 3, 1, 2).float()
    results = Masks().results({k: v.numpy() for k, v in Masks().columns(logits, labels).items()}, 3)
    assert results["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert results["per_class_iou"] == [pytest.approx(2 / 3), 0.5, None]
    assert results["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert results["pixel_accuracy"] == 0.75


class Local(torch.nn.Module):
    """Logits that depend on the pixel alone, so that windows must give what the whole image gives."""

    class config:
        image_height_width, num_labels = (8, 12), 3

    def forward(self, pixel_values):
        class Output:
            logits = torch.cat([pixel_values, -pixel_values, pixel_values**2], 1)

        assert pixel_values.shape[2:] == (8, 12)
        return Output


@pytest.mark.parametrize("size", [(8, 12), (5, 40), (31, 7), (29, 50)])
def test_windows_cover_an_image_of_any_size(size):
    pixels = torch.randn(1, 1, *size)
    expected = torch.cat([pixels, -pixels, pixels**2], 1)
    pieces = list(logits_by_rows(Local(), lambda top, end: pixels[:, :, top:end], size))
    torch.testing.assert_close(torch.cat(pieces, 1)[None], expected)
    batch = torch.zeros(2, 1, 40, 60)
    batch[0, :, : size[0], : size[1]] = pixels[0]
    batch[1, :, :8, :12] = 1
    found = logits_of(Local(), batch, [list(size), [8, 12]], True)
    torch.testing.assert_close(found[:1, :, : size[0], : size[1]], expected)


@pytest.mark.parametrize("logits_at_once", [1, 600, 1 << 25])
def test_wide_images_are_done_in_blocks_of_columns(monkeypatch, logits_at_once):
    monkeypatch.setattr(windows, "LOGITS_AT_ONCE", logits_at_once)
    image = torch.randn(1, 29, 90)
    expected = torch.cat([image, -image, image**2]).argmax(0)
    assert torch.equal(windows.classes_of(Local(), image, lambda rows: rows).long(), expected)


def test_windows_by_hand():
    assert starts_of(8, 8) == [0] and starts_of(5, 8) == [0]
    assert starts_of(9, 8) == [0, 1] and starts_of(24, 9) == [0, 6, 12, 15]


# --- the bundled scenes ---


def test_scenes_are_always_the_same_and_their_masks_show_lit_garments(monkeypatch):
    monkeypatch.setattr(scenes, "COUNTS", {"train": 30, "test": 10})
    monkeypatch.setattr(scenes, "WITH_MASKS", 20)
    wanted = SourceSettings(dataset_name="fashion_scenes", problem_type="semantic_segmentation")
    train, test = load_source(wanted), load_source(wanted, "test")
    assert (len(train), len(test)) == (20, 10) and "10 of 30 images have no mask" in train.left_out
    assert len(load_source(SourceSettings(dataset_name="fashion_scenes"))) == 30
    assert train.mask_names[0] == "ground" and train.mask_names[10] == "ankle boot"
    again = load_source(wanted)
    for i in range(10):
        assert train.cell(i) == again.cell(i) and train.mask_cell(i) == again.mask_cell(i)
        image = np.asarray(Image.open(io.BytesIO(train.cell(i)["bytes"])))
        mask = decode_mask(**cell_arguments(train.mask_cell(i)))
        assert image.shape == mask.shape == (64, 64) and 0 < mask.max() <= 10
        assert image[mask > 0].min() > scenes.LIT
    with pytest.raises(UserError, match="fashion_scenes has no split 'val': it has train, test"):
        load_source(wanted, "val")


# --- predictions ---


def test_names_of_masks():
    assert mask_files(["a.jpg", "b/a.png", "/abs/x.tif", "../y.png"]) == ["a.png", "b/a.png", "abs/x.png", "y.png"]
    assert mask_files(["a.jpg", "a.png", "b.jpg"]) == ["a.jpg.png", "a.png.png", "b.png"]
    assert mask_files(["a.jpg", "b.jpg", "a.jpg"]) == ["a.jpg-0.png", "b.png", "a.jpg-2.png"]  # rows of a table


def test_colours_are_those_of_pascal_voc():
    # From the development kit's table: aeroplane, bicycle, bird, ..., tv monitor (20), void (255).
    voc = {0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 3: [128, 128, 0], 15: [192, 128, 128], 20: [0, 64, 128]}
    assert {number: palette(256)[number].tolist() for number in voc} == voc
    assert palette(256)[255].tolist() == [224, 224, 192]


# --- dense k-NN ---


def masked_set(folder: Path, masks: list[np.ndarray]):
    """Images whose patches of class 1 are striped, all others flat."""
    for i, mask in enumerate(masks):
        stripes = np.tile(np.uint8([20, 220]), mask.size // 2).reshape(mask.shape)
        write(folder / "images" / f"{i}.png", np.where(mask == 1, stripes, 200).astype(np.uint8))
        write(folder / "masks" / f"{i}.png", mask)
    task, source = Masks(), source_again(folder)
    labels, names = task.read(source)
    return task.open_images(source, labels, names, Opening((8, 8), 1))


def test_dense_neighbours_by_hand(tmp_path):
    """Of 16 patches of 2 x 2 in each image, raw patches tell striped from flat. The last test mask is wrong about one
    patch of class 1."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 2, (5, 4, 4)).repeat(2, 1).repeat(2, 2).astype(np.uint8)
    train, test = masked_set(tmp_path / "train", list(patterns[:3])), masked_set(tmp_path / "test", list(patterns[3:]))
    config = MAEConfig(**{**TINY_GRAY, "image_size": 8, "patch_size": 2})
    reader = Reader(Accelerator(cpu=True), BatchTransform([0.5], [0.25], (8, 8)), 4, 0)
    encode = MAEModel(config).patchify
    assert dense_metrics(reader, encode, train, test, (4, 4), (5,)) == {"knn": {5: 1.0}}
    wrong = patterns[4].copy()
    row, column = np.argwhere(patterns[4] == 1)[0]
    wrong[row : row + 2, column : column + 2] = 0
    write(tmp_path / "test" / "masks" / "1.png", wrong)
    source = source_again(tmp_path / "test")
    labels, names = Masks().read(source)
    images = Masks().open_images(source, labels, names, Opening((8, 8), 1))
    ones, zeros = int(patterns[3:].sum()), 128 - int(patterns[3:].sum())  # said; four pixels fewer are true
    expected = ((ones - 4) / ones + zeros / (zeros + 4)) / 2
    assert dense_metrics(reader, encode, train, images, (4, 4), (5,))["knn"][5] == pytest.approx(expected)
