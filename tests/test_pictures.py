"""Reconstructions and charts: what is drawn, and that the files show it."""

import base64

import numpy as np
import torch
from PIL import Image

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.report import charts
from modeling_mae.report.figures import chart_uri, save_figure
from modeling_mae.report.reconstruction import (
    describe_shown,
    reconstruct_images,
    reconstruction_grid,
    save_reconstruction,
)
from modeling_mae.tasks import CLASSES


def points(axes, line=0):
    return [tuple(map(float, point)) for point in axes.lines[line].get_xydata()]


# --- reconstructions ---


def test_grid_by_hand():
    pixel_values = torch.tensor([[[[-1.0, 0.0], [1.0, 1.0]]]])  # one gray 2 x 2 image, four patches of a pixel
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    reconstruction = torch.tensor([[[[-1.0, 5.0], [-9.0, 1.0]]]])
    sheet = reconstruction_grid(pixel_values, mask, reconstruction, [0.5], [0.5], (2, 2), gap=1)
    # value x 0.5 + 0.5 in 0..1; hidden is 128; between the three columns is white
    assert sheet[..., 0].tolist() == [[0, 128, 255, 0, 128, 255, 0, 255], [255, 255, 255, 128, 255, 255, 0, 255]]
    assert torch.equal(sheet[..., 0], sheet[..., 2])


def test_grid_shows_three_of_many_channels():
    pixel_values = torch.stack([value + 3 * torch.arange(6.0).expand(4, 6) for value in (0.0, 0.2, 0.4, 0.6)])[None]
    sheet = reconstruction_grid(pixel_values, torch.zeros(1, 6), pixel_values, [0.0] * 4, [1.0] * 4, (2, 3))
    assert sheet.shape == (4, 3 * 8 - 2, 3) and sheet[0, :6, 2].tolist() == [0, 51, 102, 153, 204, 255]


def test_reconstructing_keeps_visible_patches_and_the_mode():
    config = MAEConfig(image_size=8, patch_size=4, num_channels=1, hidden_size=8, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=8, decoder_hidden_size=8, decoder_num_hidden_layers=1,
                       decoder_num_attention_heads=2, decoder_intermediate_size=8)  # fmt: skip
    model, pixel_values = MAEForPreTraining(config).train(), torch.randn(1, 1, 8, 8)
    # of four patches the one with the least noise stays visible: the third, at the lower left
    reconstruction, mask = reconstruct_images(model, pixel_values, torch.tensor([[0.9, 0.5, 0.1, 0.7]]))
    assert mask.tolist() == [[1, 1, 0, 1]] and not reconstruction.requires_grad
    assert torch.equal(reconstruction[..., 4:, :4], pixel_values[..., 4:, :4])
    assert not torch.isclose(reconstruction[..., :4, :], pixel_values[..., :4, :]).all()
    assert model.training
    reconstruct_images(model.eval(), pixel_values, torch.rand(1, 4))
    assert not model.training


def test_the_file_shows_the_sheet_below_titles(tmp_path):
    sheet = torch.zeros(20, 60, 3, dtype=torch.uint8)
    for column in range(3):
        sheet[:, 20 * column : 20 * (column + 1), column] = 255  # red, green, blue
    save_reconstruction(tmp_path / "new" / "sheet.png", sheet)
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    # the sheet takes the whole width, and in its own proportions the lower end of the file
    top = height - width * 20 // 60
    for column, colour in enumerate(([255, 0, 0], [0, 255, 0], [0, 0, 255])):
        inside = pixels[top + 5 : height - 5, width * column // 3 + 5 : width * (column + 1) // 3 - 5]
        assert (inside == colour).all()
        title = pixels[: top - 5, width * column // 3 : width * (column + 1) // 3]
        assert title.min() < 50 and title.max() == 255
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


# --- charts ---


def test_loss_curve():
    log = [
        {"step": 5, "epoch": 0.5, "loss": 0.9, "learning_rate": 1e-3},
        {"step": 10, "epoch": 1.0, "loss": 0.7, "learning_rate": 5e-4},
    ]
    loss_axes, rate_axes = charts.loss_curve(log).axes
    assert points(loss_axes) == [(0.5, 0.9), (1.0, 0.7)] and loss_axes.get_ylabel() == "loss on masked patches"
    assert points(rate_axes) == [(0.5, 1e-3), (1.0, 5e-4)] and "learning rate" in rate_axes.get_ylabel()


def test_training_curve():
    log = [
        {"step": 5, "epoch": 0.5, "loss": 0.9, "learning_rate": 1e-3},
        {"step": 10, "epoch": 1.0, "eval_accuracy": 0.25, "eval_loss": 2.0},
        {"step": 15, "epoch": 1.5, "loss": 0.7, "learning_rate": 1e-3},
        {"step": 20, "epoch": 2.0, "eval_accuracy": 0.75, "eval_loss": 1.0},
    ]
    loss_axes, accuracy_axes = charts.training_curve(log, CLASSES.problem).axes
    assert points(loss_axes) == [(0.5, 0.9), (1.5, 0.7)]
    assert points(accuracy_axes) == [(1.0, 25.0), (2.0, 75.0)] and "%" in accuracy_axes.get_ylabel()


def test_partial_curve():
    (axes,) = charts.partial_curve({12: 0.75, 0: 0.25, 0.5: 0.5}, CLASSES.problem, from_scratch=0.625).axes
    assert points(axes) == [(0, 25.0), (1, 50.0), (2, 75.0)]  # by blocks tuned, in equal steps
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "12"]
    assert [text.get_text() for text in axes.texts] == ["25.0", "50.0", "75.0"]
    assert {y for _, y in points(axes, 1)} == {62.5}
    assert [text.get_text() for text in axes.get_legend().texts] == ["pre-trained", "from scratch, all blocks"]
    (axes,) = charts.partial_curve({0: 0.25, 1: 0.5}, CLASSES.problem).axes
    assert len(axes.lines) == 1 and axes.get_legend() is None


def test_points_of_different_numbers_of_images_are_not_joined():
    images = {0: 12000, 1: 1200, 4: 1200, None: 1200}
    (axes,) = charts.partial_curve({0: 0.25, 1: 0.5, 4: 0.75}, CLASSES.problem, from_scratch=0.625, images=images).axes
    assert points(axes) == [(0, 25.0)] and points(axes, 1) == [(1, 50.0), (2, 75.0)]
    assert [text.get_text() for text in axes.get_legend().texts] == [
        "pre-trained, 12,000 labelled images",
        "pre-trained, 1,200 labelled images",
        "from scratch, all blocks, 1,200 labelled images",
    ]
    (axes,) = charts.partial_curve({0: 0.25, 1: 0.5}, CLASSES.problem, images={0: 1200, 1: 1200}).axes
    assert len(axes.lines) == 1 and axes.get_legend() is None


def test_confusion_picture():
    (axes,) = charts.confusion_picture([[3, 1, 0], [0, 0, 0], [5, 0, 5]], ["cat", "dog", "owl"]).axes
    # each row in shares of its images, and a class without any is no division by zero
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0, 0.5]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    counts = {text.get_position(): text.get_text() for text in axes.texts}  # {(column, row): count}
    assert len(counts) == 9 and counts[0, 0] == "3" and counts[1, 0] == "1" and counts[0, 2] == "5"
    (axes,) = charts.confusion_picture(np.eye(21, dtype=int).tolist(), [str(i) for i in range(21)]).axes
    assert not axes.texts


def test_a_chart_becomes_a_file(tmp_path):
    save_figure(charts.partial_curve({0: 0.25, 1: 0.5}, CLASSES.problem), tmp_path / "partial.png")
    with Image.open(tmp_path / "partial.png") as image:
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 1
    assert [path.name for path in tmp_path.iterdir()] == ["partial.png"]


def test_names_of_classes_are_no_formulas(tmp_path):
    names = ["$5 and $6", "a_{", "$\\frac", "plain"]
    figure = charts.confusion_picture(np.eye(4, dtype=int).tolist(), names)
    save_figure(figure, tmp_path / "confusion.png")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    svg = base64.b64decode(chart_uri(charts.runs_curve({"$x_{": [(0, 1)]}, "loss")).partition("base64,")[2]).decode()
    assert "<!-- $x_{ -->" in svg  # matplotlib notes each text beside its glyphs


def test_the_card_says_which_bands_are_shown():
    assert describe_shown(1) == describe_shown(3) == ""
    assert describe_shown(2) == describe_shown(1, [1]) == "The picture shows band 1 in gray."
    assert describe_shown(3, [3, 2, 1]) == "The picture shows bands 3, 2 and 1 as red, green and blue."
    assert "bands 8, 4 and 3 as red" in describe_shown(4, [8, 4, 3, 2]) and "98 is white" in describe_shown(13)


def test_names_are_no_formulas(tmp_path):
    names = ["price $", "_{a} $x^$", "$\\frac{"]
    confusion = np.eye(3, dtype=int).tolist()
    save_figure(charts.confusion_picture(confusion, names), tmp_path / "confusion.png")
    save_figure(charts.runs_curve({name: [(0.0, 1.0), (1.0, 2.0)] for name in names}, "loss"), tmp_path / "runs.png")
    (axes,) = charts.confusion_picture(confusion, names).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert not any(label.get_parse_math() for label in [*axes.get_xticklabels(), *axes.get_yticklabels()])
