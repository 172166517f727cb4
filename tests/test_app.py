"""What the browser app computes, without a browser. `test_app_browser.py` looks at the page itself."""

import io
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from conftest import TINY, tiny_config
from PIL import Image
from sklearn.decomposition import PCA
from tifffile import imwrite
from timm.models import save_for_hf
from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

from modeling_mae import EvalNet, MAEForPreTraining, MAEModel
from modeling_mae.app import views
from modeling_mae.app.explorer import Explorer, Folder
from modeling_mae.data.find.slices import SliceSettings
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.errors import UserError
from modeling_mae.readout import nearest
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation
from modeling_mae.tasks import CLASSES, NUMBERS, SEVERAL_CLASSES
from modeling_mae.tasks.windows import logits_of


GRID = (4, 4)  # of TINY


def saved(path, model_class=MAEForPreTraining, processor=True, **changes):
    """A checkpoint with random weights, far enough from their start that attention is not uniform."""
    torch.manual_seed(0)
    model = model_class(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    if processor:
        channels, size = model.config.num_channels, model.config.image_height_width
        image_processor(size, [0.4] * channels, [0.2] * channels, channels).save_pretrained(path)
    return model.eval()


def encoded(pixels, kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def random_pixels(seed=0, shape=(32, 32, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained")
    saved(path)
    return Explorer(str(path))


def test_attention_is_that_of_the_forward_pass(explorer):
    look = explorer.open(encoded(random_pixels()), "x.png")
    eager = MAEModel.from_pretrained(explorer.checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        maps = eager(look.pixel_values, output_attentions=True).attentions  # (1, heads, tokens, tokens) for each block
    for block in (1, 2):
        for token in (0, 1, 16):
            row = explorer.attention(look, token, block)
            assert row.sum() == pytest.approx(1, abs=1e-5)
            torch.testing.assert_close(row, maps[block - 1][0, :, token].mean(0), atol=1e-5, rtol=1e-4)
    assert row.std() > 1e-3  # the comparison would hold for any uniform attention


def test_patch_features_of_the_last_block_are_the_encoders_output(explorer):
    look = explorer.open(encoded(random_pixels()), "x.png")
    with torch.no_grad():
        output = explorer.encoder(look.pixel_values)
    torch.testing.assert_close(explorer.patch_features(look, explorer.depth), output.last_hidden_state[0, 1:])
    torch.testing.assert_close(look.feature, output.last_hidden_state[0, 1:].mean(0))


def test_an_image_is_brought_to_the_model_as_by_its_processor(explorer):
    pixels = random_pixels(shape=(64, 64, 3))
    look = explorer.open(encoded(pixels), "x.png")
    inputs = explorer.processor()(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    # PIL rounds to whole values after each of its two passes; a value of 1/255 is 1/255/0.2 here.
    difference = (look.pixel_values - inputs).abs() * 255 * 0.2
    assert difference.mean() < 0.5 and difference.max() < 3
    assert (explorer.processing.mean, explorer.processing.std) == ([0.4] * 3, [0.2] * 3)


def test_principal_components_are_scikit_learns():
    features = torch.randn(49, 12, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 13)
    ours = views.principal_components(features).numpy()
    theirs = PCA(3).fit_transform(features.double().numpy())
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-3)
    assert all(column[np.abs(column).argmax()] > 0 for column in ours.T)


def test_components_that_are_not_there_are_gray():
    line = torch.arange(5.0)[:, None] * torch.tensor([[3.0, 4.0]])  # one direction, length 5 a step
    components = views.principal_components(line)
    assert torch.allclose(components[:, 0].abs(), torch.tensor([10.0, 5, 0, 5, 10]), atol=1e-4)
    assert components[:, 1:].abs().max() == 0
    colours = views.as_colours(components)
    assert sorted(colours[:, 0].tolist()) == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-5)
    assert (colours[:, 1:] == 0.5).all()
    assert (views.as_colours(views.principal_components(torch.ones(4, 2))) == 0.5).all()


def test_drawn_masks_hide_the_share_that_is_asked_for():
    for kind in ("random", "block", "grid"):
        for ratio, hidden in ((0.75, 12), (0.5, 8), (0.9, 15)):
            assert views.drawn_mask(kind, ratio, GRID, 0).sum() == hidden
    grid = views.drawn_mask("grid", 0.75, GRID, 5).view(GRID)
    assert (~grid).nonzero().tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    masks = {tuple(views.drawn_mask("random", 0.5, GRID, seed).tolist()) for seed in range(5)}
    assert len(masks) == 5
    with pytest.raises(UserError, match="leaves 0 visible"):
        views.drawn_mask("random", 0.99, GRID, 0)


@pytest.mark.parametrize(
    ("point", "patch"), [((0, 0), 0), ((31, 0), 3), ((8, 0), 1), ((0, 31), 12), ((31, 31), 15), ((32, 40), 15)]
)
def test_the_patch_under_a_click(point, patch):
    assert views.patch_at(*point, (32, 32), GRID) == patch


def test_clicked_patches_are_exactly_those_hidden(explorer):
    look = explorer.open(encoded(random_pixels()), "x.png")
    mask = torch.zeros(16, dtype=torch.bool)
    for patch in (0, 5, 6, 5):  # the second click on 5 shows it again
        mask = views.toggled(mask, patch)
    masked, picture = views.with_hidden(look.picture, mask, GRID), look.picture
    reconstructed, loss = explorer.reconstruct(look, mask)
    for patch in range(16):
        part = slice(patch // 4 * 8, patch // 4 * 8 + 8), slice(patch % 4 * 8, patch % 4 * 8 + 8)
        hidden = patch in (0, 6)
        assert torch.equal(masked[part], picture[part]) != hidden
        assert torch.equal(reconstructed[part], picture[part]) != hidden
        assert not hidden or (masked[part] == 128).all()
    with torch.no_grad():
        assert loss == pytest.approx(float(explorer.model(look.pixel_values, bool_masked_pos=mask[None]).loss))


@pytest.mark.parametrize("hidden", [0, 16])
def test_some_patches_must_be_hidden_and_some_visible(explorer, hidden):
    look = explorer.open(encoded(random_pixels()), "x.png")
    with pytest.raises(UserError, match=f"{hidden} of 16 patches are hidden"):
        explorer.reconstruct(look, torch.full((16,), hidden > 0))


def test_pictures_of_patches():
    picture = torch.zeros(8, 8, 3, dtype=torch.uint8)
    heat = torch.tensor([0.0, 0.2, 0.4, 0.1])  # 2 x 2 patches of 4 pixels
    shown = views.with_heat(picture, heat, (2, 2))
    brightness = shown.float().mean(2)
    assert brightness[0, 0] < brightness[7, 7] < brightness[0, 7] < brightness[7, 0]
    assert all(
        shown[row : row + 4, column : column + 4].unique(dim=0).shape[0] == 1 for row in (0, 4) for column in (0, 4)
    )
    framed = views.with_frame(picture, 3, (2, 2))
    assert framed[:4].sum() == 0 and framed[4:, :4].sum() == 0
    assert framed[4, 4].tolist() == list(views.MARK) and framed[5, 5].tolist() == [0, 0, 0]
    assert views.enlarged(torch.zeros(28, 14, 3)).shape == (448, 224, 3)
    assert views.enlarged(torch.zeros(1000, 500, 3)).shape == (1000, 500, 3)
    assert views.small(torch.full((448, 224, 3), 7, dtype=torch.uint8)).shape == (112, 56, 3)
    assert views.small(torch.full((150, 150, 3), 7, dtype=torch.uint8)).unique().tolist() == [7]


def test_neighbours_by_cosine():
    bank = torch.tensor([[1.0, 0], [0, 5], [3, 3], [-1, 0]])
    similarities, places = nearest(torch.tensor([[2.0, 0]]), bank, 3)
    assert places.tolist() == [[0, 2, 1]]
    assert similarities[0].tolist() == pytest.approx([1, 2**-0.5, 0], abs=1e-6)
    assert nearest(torch.tensor([[2.0, 0]]), bank, 9)[0].shape == (1, 4)


def test_named_scores():
    logits = torch.log(torch.tensor([0.1, 0.7, 0.2]))
    scores = CLASSES.shown(logits, ["cat", "dog", "cow"], count=2)
    assert list(scores.items()) == [("dog", pytest.approx(0.7)), ("cow", pytest.approx(0.2))]
    odds = torch.tensor([0.0, np.log(3)])  # 1 and 3 to 1
    scores = SEVERAL_CLASSES.shown(odds, ["cat", "dog"])
    assert list(scores.items()) == [("dog", pytest.approx(0.75)), ("cat", pytest.approx(0.5))]
    assert NUMBERS.shown(odds, ["cat", "dog"]) == "cat: 0\ndog: 1.099"


def test_a_folder_knows_its_images_again(explorer, tmp_path):
    for i in range(5):
        Image.fromarray(random_pixels(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "2b.png").write_bytes(b"not an image")
    folder = Folder(explorer, str(tmp_path), most=100, batch_size=2)
    assert len(folder) == 5 and folder.total == 6
    look = explorer.open((tmp_path / "3.png").read_bytes(), "3.png")
    (place, similarity), *rest = folder.neighbours(look, 3)
    assert folder.name(place) == "3.png" and similarity == pytest.approx(1, abs=1e-4)
    assert len(rest) == 2 and rest[0][1] < 0.999
    assert torch.equal(folder.look(place).picture, torch.from_numpy(random_pixels(3)))
    assert torch.equal(folder.pictures[place][::4, ::4], torch.from_numpy(random_pixels(3)))  # 128 pixels
    assert len(Folder(explorer, str(tmp_path), most=2)) == 2


def test_a_stack_is_seen_as_its_slices(tmp_path):
    """Nothing rescales the 8 bits of a TIFF stack, so each slice is its page."""
    saved(tmp_path / "gray", num_channels=1)
    pages = random_pixels(shape=(3, 32, 32))
    pages[:, 0, :2] = 0, 255  # all three have black and white
    (tmp_path / "scans").mkdir()
    imwrite(tmp_path / "scans" / "scan.tif", pages, photometric="minisblack")
    sliced = Explorer(str(tmp_path / "gray"), slices=SliceSettings("all"))
    folder = Folder(sliced, str(tmp_path / "scans"), most=9)
    assert [folder.name(place) for place in range(len(folder))] == [f"scan.tif#z={z}" for z in range(3)]
    for place, page in enumerate(pages):
        shown = folder.look(place).picture
        assert torch.equal(shown, torch.from_numpy(page)[..., None].expand_as(shown))
    dropped = sliced.open_file(tmp_path / "scans" / "scan.tif")
    assert dropped.name == "scan.tif#z=1" and torch.equal(dropped.picture, folder.look(1).picture)
    (place, similarity), *_ = folder.neighbours(dropped, 2)
    assert place == 1 and similarity == pytest.approx(1, abs=1e-4)
    first = Explorer(str(tmp_path / "gray"))
    assert len(Folder(first, str(tmp_path / "scans"), most=9)) == 1
    assert torch.equal(first.open_file(tmp_path / "scans" / "scan.tif").picture, folder.look(0).picture)
    with pytest.raises(UserError, match="scan.nii.gz is a volume: start the app with --slices all"):
        first.open_file(tmp_path / "scan.nii.gz")


def test_a_classifier_has_classes_and_no_decoder(tmp_path):
    model = saved(tmp_path, EvalNet, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, head_norm="layer")
    explorer = Explorer(str(tmp_path))
    assert explorer.classifies and not explorer.reconstructs
    look = explorer.open(encoded(random_pixels()), "x.png")
    with torch.no_grad():
        probabilities = model(look.pixel_values).logits.softmax(1)[0]
    assert dict(look.scores) == {
        name: pytest.approx(float(p), abs=1e-5) for name, p in zip("abc", probabilities, strict=True)
    }
    with pytest.raises(UserError, match="no decoder"):
        explorer.reconstruct(look, views.drawn_mask("random", 0.5, GRID, 0))


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    path = tmp_path_factory.mktemp("segmentation")
    names = {0: "ground", 1: "<leaf>", 2: "stem"}
    return saved(path, MAEForSemanticSegmentation, num_labels=3, id2label=names), Explorer(str(path))


def test_a_segmentation_shows_the_class_of_each_pixel(segmentation):
    model, explorer = segmentation
    assert explorer.segments and not explorer.classifies and explorer.names == ["ground", "<leaf>", "stem"]
    pixels = random_pixels(shape=(32, 32, 3))
    look = explorer.open(encoded(pixels), "x.png")
    with torch.no_grad():
        mask = model(look.pixel_values).logits.argmax(1)[0].numpy()
    assert look.scores is None and np.array_equal(look.segmented.mask, mask)
    shares = {i: (mask == i).mean() for i in np.unique(mask)}
    assert look.segmented.shares == pytest.approx(shares) and len(shares) > 1
    assert [*look.segmented.shares.values()] == sorted(shares.values(), reverse=True)
    assert np.array_equal(look.segmented.picture(explorer.colours, 0.0, None), pixels)
    assert np.array_equal(look.segmented.picture(explorer.colours, 1.0, None), explorer.colours[mask])
    alone = look.segmented.picture(explorer.colours, 1.0, 1)
    assert np.array_equal((alone == explorer.colours[1]).all(2), mask == 1)
    assert alone[mask != 1].min() >= 255 - 255 // 6 - 1  # the rest is nearly white


def test_large_images_are_segmented_in_windows(segmentation):
    model, explorer = segmentation
    pixels = random_pixels(shape=(1100, 50, 3))
    look = explorer.open(encoded(pixels), "large.png")
    values = explorer.normalised(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    expected = logits_of(model, values, [[1100, 50]], in_windows=True).argmax(1)[0].numpy()
    assert np.array_equal(look.segmented.mask, expected[::2, ::2])  # as is the picture
    assert look.segmented.image.shape == (3, 550, 25)
    assert look.segmented.shares == pytest.approx({i: (expected == i).mean() for i in np.unique(expected)})
    assert look.picture.shape == (32, 32, 3)


def test_the_page_of_a_segmentation(segmentation, tmp_path):
    page_module = pytest.importorskip("modeling_mae.app.page", reason="the app needs gradio: pip install gradio")
    _, explorer = segmentation
    page = page_module.Page(explorer)
    path = tmp_path / "x.png"
    path.write_bytes(encoded(random_pixels(shape=(40, 56, 3))))
    changes = page.open_file(str(path), "random", 0.75, 2, 0.5)
    session = changes[page.session]
    mask = session.look.segmented.mask
    legend = changes[page.legend]
    assert legend.count("<li>") == len(np.unique(mask)) and "&lt;leaf&gt;" in legend and "<leaf>" not in legend
    assert changes[page.alone].choices[0] == ("all classes", page_module.ALL)
    factor = views.enlargement(mask.shape)
    assert changes[page.classes].shape == (40 * factor, 56 * factor, 3)
    click = SimpleNamespace(index=[55 * factor, 39 * factor])  # the last pixel
    clicked = page.click_class(session, 0.5, page_module.ALL, click)
    assert clicked[page.alone] == mask[39, 55] and "alone" in clicked[page.message]
    assert page.click_class(session, 0.5, clicked[page.alone], click)[page.alone] == page_module.ALL
    assert "no image yet" in page.colour(None, 0.5, page_module.ALL)[page.message]


def test_an_encoder_alone(tmp_path):
    saved(tmp_path, MAEModel)
    explorer = Explorer(str(tmp_path))
    assert not explorer.classifies and not explorer.reconstructs
    assert explorer.open(encoded(random_pixels()), "x.png").scores is None


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_type": "cross", "prediction_ratio": 0.25},
        {"pooling": "attention", "num_pooling_queries": 4},
        {"image_size": (32, 16), "patch_size": (8, 4)},
        {"pooling": "flatten", "norm_pix_loss": False},
    ],
)
def test_other_models(tmp_path, changes):
    saved(tmp_path, **changes)
    explorer = Explorer(str(tmp_path))
    look = explorer.open(encoded(random_pixels(shape=(50, 40, 3)), "JPEG"), "x.jpg")
    mask = views.drawn_mask("random", 0.75, explorer.grid, 0)
    picture, _ = explorer.reconstruct(look, mask)
    visible = views.over_pixels(~mask, explorer.grid, explorer.size)
    assert torch.equal(picture[visible], look.picture[visible])
    assert not torch.equal(picture, look.picture)
    assert explorer.features(torch.rand(2, 3, *explorer.size)).shape[0] == 2


def test_many_bands_show_three(tmp_path):
    saved(tmp_path, num_channels=5)
    explorer = Explorer(str(tmp_path))
    array = np.random.default_rng(0).integers(0, 255, (5, 32, 32), np.uint8)
    file = io.BytesIO()
    np.save(file, array)
    look = explorer.open(file.getvalue(), "field.npy")
    assert look.pixel_values.shape == (1, 5, 32, 32) and look.picture.shape == (32, 32, 3)
    order = torch.from_numpy(array[:3]).movedim(0, 2).flatten(0, 1)  # stretching keeps the order in each band
    for band in range(3):
        assert np.all(np.diff(look.picture.flatten(0, 1)[order[:, band].argsort(), band].int().numpy()) >= 0)
    with pytest.raises(UserError, match="x.png is a picture .* the model takes 5"):
        explorer.open(encoded(random_pixels()), "x.png")


@pytest.mark.parametrize("data", [b"", b"hello", encoded(random_pixels())[:60], b"\xff\xd8\xff\xe0 broken"])
def test_a_bad_file_is_one_line_with_its_name(explorer, data):
    with pytest.raises(UserError, match="holiday.jpg") as error:
        explorer.open(data, "holiday.jpg")
    assert "\n" not in str(error.value)


def test_checkpoints_that_cannot_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hi\n")
    for name, message in (
        (tmp_path / "none", "is neither a folder here nor a Hub id: give"),
        ("me/none", "is neither a folder here nor a Hub id that can be reached .*: check the path"),
        (tmp_path / "empty", "has no config.json of a model: give the output_dir"),
        (tmp_path / "notes.txt", "is not a checkpoint: give a .safetensors"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Explorer(str(name))
        assert "\n" not in str(error.value)
    saved(tmp_path / "gray", processor=False, num_channels=1)
    with pytest.raises(UserError, match="has no image processor"):
        Explorer(str(tmp_path / "gray"))
    saved(tmp_path / "rgb", processor=False)
    assert Explorer(str(tmp_path / "rgb")).guessed


def test_other_projects_checkpoints(tmp_path):
    ViTMAEForPreTraining(ViTMAEConfig(**TINY)).save_pretrained(tmp_path / "vit_mae")
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3, image_std=[0.3] * 3)
    processor.save_pretrained(tmp_path / "vit_mae")
    explorer = Explorer(str(tmp_path / "vit_mae"))
    assert explorer.reconstructs and explorer.processing.mean == [0.1] * 3
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **size)
    save_for_hf(model, tmp_path / "timm", model_args=size, safe_serialization=True)
    explorer = Explorer(str(tmp_path / "timm"))
    assert explorer.classifies and explorer.processing.mean == list(model.pretrained_cfg["mean"])
    assert len(explorer.open(encoded(random_pixels()), "x.png").scores) == 5
