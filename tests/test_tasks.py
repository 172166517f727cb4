"""What a task may be: its labels may be images that follow the flip, and its model another than EvalNet."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import TINY_GRAY
from PIL import Image
from transformers.modeling_outputs import SemanticSegmenterOutput

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.find.sources import Source, SourceSettings, load_source
from modeling_mae.data.serve.crops import training_crop
from modeling_mae.data.serve.images import MemoryImages, Opening
from modeling_mae.errors import UserError
from modeling_mae.evaluation.classifier import evaluate_classifier
from modeling_mae.evaluation.reader import Reader
from modeling_mae.tasks import CLASSES, MASKS, NUMBERS, SEVERAL_CLASSES, TASKS, task_of_checkpoint
from modeling_mae.tasks.evalnet import names_of
from modeling_mae.tasks.numbers import Numbers
from modeling_mae.tasks.protocol import Task
from modeling_mae.tasks.sets import LabelledSets
from modeling_mae.training.augment import BatchTransform


class Segmenter(torch.nn.Module):
    """Takes pixels of more than half of white for class 1."""

    def forward(self, pixel_values, labels=None):
        logits = torch.cat([0.5 - pixel_values, pixel_values - 0.5], 1)  # (batch, classes, height, width)
        return SemanticSegmenterOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class Masks(Task):
    """A class for each pixel. Labels are images ``(images, height, width)`` uint8."""

    problem = CLASSES.problem
    model_class = Segmenter

    def recognises(self, source):
        return False

    def read_one(self, source, known_names):
        return np.array(source.dataset["mask"][:], np.uint8), ["ground", "thing"]

    def reordered(self, labels, order):
        return np.argsort(order)[labels]

    def open_images(self, source, labels, names, opening):
        pixels = torch.tensor(source.dataset["image"][:], dtype=torch.uint8)[:, None]
        return MemoryImages(pixels, opening.size, labels=torch.from_numpy(labels))

    def labels_of(self, batch, size):
        masks = batch["labels"].long()
        return (
            torch.where(batch["flips"][:, None, None], masks.flip(2), masks) if batch["flips"] is not None else masks
        )

    def notes(self, labels, label_fraction, mixes, label_smoothing):
        return []

    def new_model(self, config, checkpoint, names, n_partial, labels, say):
        return Segmenter()

    def outputs(self, model, transform, batch):
        return model(transform(batch)).logits

    def columns(self, logits, labels):
        hits = (logits.argmax(1) == labels).flatten(1).float().mean(1)
        return {"hits": hits, "loss": F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)}

    def results(self, columns, names):
        return {"accuracy": float(columns["hits"].mean()), "loss": float(columns["loss"].mean())}

    def each_image(self, columns):
        return columns["hits"][:, None]

    def written(self, columns):
        return columns

    def answers(self, names):
        raise NotImplementedError

    def shown(self, logits, names, count=5):
        return ""


def test_labels_that_are_images_follow_the_flip():
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, (9, 8, 8))
    images = np.where(masks, 200, 30)
    images[0, 0, :4] = 255 - images[0, 0, :4]  # of 9 x 64 pixels 4 are not what they seem
    source = Source(
        datasets.Dataset.from_dict({"image": images.tolist(), "mask": masks.tolist()}), "image", "mask", "x"
    )
    task = Masks()
    labels, names = task.read(source)
    opened = task.open_images(source, labels, names, Opening((8, 8), 1))
    flipped = opened.view(training_crop(0, [1, 1], True, (8, 8)))
    transform = BatchTransform([0.0], [1.0], (8, 8))
    batch = flipped.batch(0, list(range(1, 9)))
    pixels, targets = transform(batch), task.labels_of(batch, (8, 8))
    assert 0 < batch["flips"].sum() < 8 and not torch.equal(targets, torch.from_numpy(masks[1:]))
    assert torch.equal((pixels[:, 0] > 0.5).long(), targets)
    sets = LabelledSets(None, flipped, names, "x", None, "x", "test", task)
    model = task.new_model(MAEConfig(**TINY_GRAY), None, names, 0, torch.from_numpy(labels), print)
    results, _ = evaluate_classifier(Reader(Accelerator(cpu=True), transform, 4, 0), model, sets)
    assert results["accuracy"] == pytest.approx(1 - 4 / (9 * 64))
    with pytest.raises(UserError, match="frozen features cannot be evaluated"):
        _ = sets.frozen_task


class Brightness(Numbers):
    """Labels are the images' own means ``(images, 1)``, in whites. Nothing is read."""

    problem = dataclasses.replace(NUMBERS.problem, problem_type="brightness")

    def recognises(self, source):
        return False

    def read_one(self, source, known_names):
        return np.zeros((len(source), 1), np.float32), ["brightness"]

    def open_images(self, source, labels, names, opening):
        images = super().open_images(source, labels, names, opening)
        means = [images.read(i).float().mean() / 255 for i in range(len(images))]
        return images.with_labels(torch.stack(means)[:, None])

    def config_value(self, names):
        return NUMBERS.name


def test_labels_that_follow_from_the_pixels(tmp_path):
    levels = [0, 51, 255]
    for level in levels:
        Image.new("L", (8, 8), level).save(tmp_path / f"{level:03}.png")
    task, source = Brightness(), load_source(SourceSettings(train_dir=str(tmp_path)))
    labels, names = task.read(source)
    images = task.open_images(source, labels, names, Opening((8, 8), 1))
    assert images.labels[:, 0].tolist() == pytest.approx([0, 0.2, 1])
    batch = images.view(rows=np.array([2, 1])).batch(0, [0, 1])
    assert batch["labels"].tolist() == [images.labels[2].tolist(), images.labels[1].tolist()]
    # Its models are regressions, and go on with their heads.
    said: list[str] = []
    config = MAEConfig(**TINY_GRAY)
    model = task.new_model(config, None, names, 0, images.labels, said.append)
    assert model.config.problem_type == NUMBERS.name
    torch.nn.init.constant_(model.head.weight, 0.5)
    model.save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    assert task_of_checkpoint(checkpoint.config) is NUMBERS
    again = task.new_model(checkpoint.config, checkpoint, names, 0, images.labels, said.append)
    assert torch.equal(again.head.weight, model.head.weight) and not said


def test_the_task_of_a_checkpoint():
    def task_of(*architectures, **fields):
        return task_of_checkpoint(MAEConfig(**TINY_GRAY, architectures=list(architectures), **fields))

    assert task_of("EvalNet") is task_of("EvalNet", problem_type=CLASSES.name) is CLASSES
    assert task_of("EvalNet", problem_type=SEVERAL_CLASSES.name) is SEVERAL_CLASSES
    assert task_of("EvalNet", problem_type=NUMBERS.name) is NUMBERS
    assert task_of(MAEForPreTraining.__name__) is task_of() is None
    assert list(TASKS) == [CLASSES.name, SEVERAL_CLASSES.name, NUMBERS.name, MASKS.name]


def test_every_output_has_a_name():
    assert names_of(MAEConfig(**TINY_GRAY, id2label={0: "cat", 1: 7})) == ["cat", "7"]
    for bad in ({0: "cat", 2: "dog"}, {0: "cat", 1: None}):
        with pytest.raises(UserError, match="id2label has None as the name of class 1: fix"):
            names_of(MAEConfig(**TINY_GRAY, id2label=bad))


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["NA", "ZA", "DE"], ["DE", "NA", "ZA"]),
        (["None", "Pneumonia", "null"], ["None", "Pneumonia", "null"]),
        (["NA", "None", "null"], ["NA", "None", "null"]),
        (["001", "010", "100"], ["001", "010", "100"]),
        (["1E5", "10E4", "3e1"], ["10E4", "1E5", "3e1"]),
        (["2", "0", "1"], ["0", "1", "2"]),
    ],
)
def test_words_of_metadata_stay_words(tmp_path, picture_bytes, cells, names):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture_bytes)
    rows = [f"{i}.png,{cell}" for i, cell in enumerate(cells)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    labels, found = CLASSES.read(load_source(SourceSettings(train_dir=str(tmp_path))))
    assert found == names and [found[i] for i in labels] == cells


@pytest.fixture
def picture_bytes(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "x.png"
    Image.new("L", (8, 8), 7).save(path)
    return path.read_bytes()


def test_numbers_of_metadata_stay_numbers(tmp_path, picture_bytes):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture_bytes)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,5e-01\n1.png,-1.5e1\n2.png,NA\n")
    source = load_source(SourceSettings(train_dir=str(tmp_path)))
    assert NUMBERS.recognises(source)
    with pytest.raises(UserError, match="1 of 3 images"):
        NUMBERS.read(source)
