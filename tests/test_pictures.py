import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image

from modeling_mae.training.card import write_card
from modeling_mae.training.pictures import loss_curve, reconstruction_grid, save_reconstruction


def test_grid_by_hand():
    pixel_values = torch.tensor([[[[-1.0, 0.0], [1.0, 1.0]]]])  # one gray 2 x 2 image, four patches of a pixel
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    reconstruction = torch.tensor([[[[-1.0, 5.0], [-9.0, 1.0]]]])
    sheet = reconstruction_grid(pixel_values, mask, reconstruction, [0.5], [0.5], (2, 2), gap=1)
    # value x 0.5 + 0.5 in 0..1; hidden is 128; between the three columns is white
    assert sheet[..., 0].tolist() == [[0, 128, 255, 0, 128, 255, 0, 255], [255, 255, 255, 128, 255, 255, 0, 255]]
    assert torch.equal(sheet[..., 0], sheet[..., 2])


def test_grid_shows_three_of_many_channels():
    pixel_values = torch.stack([torch.full((4, 6), value) for value in (0.0, 0.2, 0.4, 0.6)])[None]
    sheet = reconstruction_grid(pixel_values, torch.zeros(1, 6), pixel_values, [0.0] * 4, [1.0] * 4, (2, 3))
    assert sheet.shape == (4, 3 * 8 - 2, 3) and sheet[0, 0].tolist() == [0, 51, 102]


def test_files_are_pictures(tmp_path):
    save_reconstruction(tmp_path / "new" / "sheet.png", torch.zeros(20, 64, 3, dtype=torch.uint8))
    log = [{"step": i, "epoch": i / 2, "loss": 1 / (i + 1), "learning_rate": 1e-3} for i in range(5)]
    loss_curve(tmp_path / "loss.png", log)
    for path in (tmp_path / "new" / "sheet.png", tmp_path / "loss.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1
    assert {path.name for path in tmp_path.iterdir()} == {"new", "loss.png"}


def test_card_is_read_back_by_the_hub_client(tmp_path):
    write_card(
        tmp_path,
        name="small",
        data="10 images of pets",
        architecture="Two blocks",
        normalised=True,
        repo_id="me/small",
        arguments={"seed": 3, "train_dir": "/home/me/pets", "cache_dir": None},
        results={"final loss": "0.4321"},
        knn={"trained encoder": 0.755},
        knn_split="test",
        dataset_id="me/pets",
        dataset_name="pets",
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets == ["me/pets"]
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("me/pets", "test", 0.755)
    for text in (
        "# small",
        "| final loss | 0.4321 |",
        "| trained encoder | 75.5 % |",
        "| seed | `3` |",
        "2111.06377",
        "mean and deviation of the hidden one",
        'AutoModel.from_pretrained("me/small", trust_remote_code=True)',
        "`import modeling_mae`",
    ):
        assert text in card.text
    assert "/home/me" not in card.text
