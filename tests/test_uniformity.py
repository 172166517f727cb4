"""The uniformity term of U-MAE (arXiv 2210.08344)."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from configuration import model_settings
from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.modeling_mae import mean_squared_cosine


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ([[1.0, 0.0], [3.0, 0.0]], 1),  # the same direction
        ([[1.0, 0.0], [-2.0, 0.0]], 1),
        ([[1.0, 0.0], [0.0, 5.0]], 0),
        ([[1.0, 0.0], [0.5, 3**0.5 / 2]], 0.25),  # 60 degrees
        ([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]], (0 + 0.5 + 0.5) / 3),
        ([[1.0, 0.0]], 0),  # no pair
    ],
)
def test_cosines_counted_by_hand(features, expected):
    assert mean_squared_cosine(torch.tensor(features)).item() == pytest.approx(expected, abs=1e-6)


def test_it_is_added_to_the_loss_and_reaches_the_encoder():
    torch.manual_seed(0)
    model, pixels = MAEForPreTraining(MAEConfig(**TINY)), torch.randn(5, 3, 32, 32)
    noise = torch.rand(5, 16)
    plain = model(pixels, noise=noise).loss
    features = model.mae(pixels, noise=noise, mask_ratio=0.75).last_hidden_state[:, 1:].mean(1)  # (5, 32)
    cosines = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(features, 2)]
    assert len(cosines) == 10
    term = torch.stack(cosines).square().mean()
    model.config.uniformity_weight = 0.5
    loss = model(pixels, noise=noise).loss
    torch.testing.assert_close(loss, plain + 0.5 * term)
    weight = model.mae.layers[0].mlp.fc1.weight
    (whole,), (first,), (second,) = (torch.autograd.grad(each, weight) for each in (loss, plain, term))
    torch.testing.assert_close(whole, first + 0.5 * second)
    assert second.abs().max() > 0


def test_a_checkpoint_keeps_it_and_older_runs_do_not_name_it(tmp_path):
    MAEForPreTraining(MAEConfig(**TINY, uniformity_weight=0.01)).save_pretrained(tmp_path)
    config = MAEForPreTraining.from_pretrained(tmp_path).config
    assert model_settings(config)["uniformity_weight"] == 0.01
    assert "uniformity_weight" not in model_settings(MAEConfig(**TINY))


@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf")])
def test_weights_that_are_none(value):
    with pytest.raises(ValueError, match=f"uniformity_weight={value} is not a weight"):
        MAEConfig(**TINY, uniformity_weight=value)
