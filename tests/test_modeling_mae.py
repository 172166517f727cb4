"""The model against transformers' own ViTMAE, masks counted by hand, closed forms and published sizes."""

import math

import pytest
import torch
from conftest import TINY, tiny_config
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import (
    Trainer,
    TrainingArguments,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from configuration.model import PRESETS
from modeling_mae import MAEConfig, MAEForPreTraining, MAEModel, mask_noise
from modeling_mae.modeling_mae import resize_positions, sincos_positions, visible_count


def tiny(**changes) -> MAEForPreTraining:
    torch.manual_seed(0)
    return MAEForPreTraining(tiny_config(**changes)).eval()


def as_vit_mae(model: MAEForPreTraining) -> ViTMAEForPreTraining:
    """transformers' model with the weights of ours, positions included."""
    config = model.config
    names = set(TINY) | {"num_channels", "mask_ratio", "norm_pix_loss", "layer_norm_eps"}
    other = ViTMAEForPreTraining(ViTMAEConfig(**{name: getattr(config, name) for name in names})).eval()
    ours, patch, channels, width = model.state_dict(), config.patch_size, config.num_channels, config.hidden_size
    state = {
        "vit.embeddings.cls_token": ours["mae.embeddings.cls_token"],
        "vit.embeddings.position_embeddings": ours["mae.embeddings.positions.table"],
        "vit.embeddings.patch_embeddings.projection.weight": ours["mae.embeddings.patch_embeddings.weight"]
        .view(width, patch, patch, channels)
        .permute(0, 3, 1, 2),
        "vit.embeddings.patch_embeddings.projection.bias": ours["mae.embeddings.patch_embeddings.bias"],
        "decoder.mask_token": ours["decoder.mask_token"],
        "decoder.decoder_pos_embed": ours["decoder.positions.table"],
    }
    pairs = {
        "mae.layernorm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.head": "decoder.decoder_pred",
    }
    layer_pairs = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attention.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for mine, theirs, depth in (
        ("mae.layers", "vit.layers", config.num_hidden_layers),
        ("decoder.layers", "decoder.decoder_layers", config.decoder_num_hidden_layers),
    ):
        for i in range(depth):
            pairs |= {f"{mine}.{i}.{a}": f"{theirs}.{i}.{b}" for a, b in layer_pairs.items()}
            for kind in ("weight", "bias"):
                for part, value in zip("qkv", ours[f"{mine}.{i}.attention.qkv.{kind}"].chunk(3), strict=True):
                    state[f"{theirs}.{i}.attention.{part}_proj.{kind}"] = value
    for mine, theirs in pairs.items():
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = ours[f"{mine}.{kind}"]
    other.load_state_dict(state, strict=True)
    return other


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_forward_equals_transformers(norm_pix_loss):
    model = tiny(norm_pix_loss=norm_pix_loss)
    for parameter in model.parameters():  # biases and norms away from 0 and 1, so that each of them counts
        parameter.data += 0.05 * torch.randn_like(parameter)
    other = as_vit_mae(model)
    pixels, noise = torch.randn(5, 3, 32, 32), torch.rand(5, 16)
    with torch.no_grad():
        ours, theirs = model(pixels, noise=noise), other(pixels, noise=noise)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=0)
    assert torch.equal(ours.mask, theirs.mask) and torch.equal(ours.ids_restore, theirs.ids_restore)


def test_gradients_equal_transformers():
    model = tiny()
    other = as_vit_mae(model)
    pixels, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    model(pixels, noise=noise).loss.backward()
    other(pixels, noise=noise).loss.backward()
    theirs = other.vit.layers[0].attention
    expected = torch.cat([theirs.q_proj.weight.grad, theirs.k_proj.weight.grad, theirs.v_proj.weight.grad])
    torch.testing.assert_close(model.mae.layers[0].attention.qkv.weight.grad, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(model.decoder.mask_token.grad, other.decoder.mask_token.grad, atol=1e-6, rtol=1e-4)


def test_initial_distributions_are_the_papers():
    torch.manual_seed(0)
    model = MAEForPreTraining(tiny_config(hidden_size=192, intermediate_size=768, decoder_hidden_size=128))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            bound = math.sqrt(6 / sum(module.weight.shape))  # xavier uniform
            assert module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
            assert not module.bias.any(), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-6, name
    for token in (model.mae.embeddings.cls_token, model.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.25)
    for positions, width in ((model.mae.embeddings.positions, 192), (model.decoder.positions, 128)):
        assert not positions.table.requires_grad and not positions.table[0, 0].any()
        # Patch 6 of the 4 x 4 grid is row 1, column 2: frequency j turns by position / 10000^(j / (width / 4)).
        for j in (0, 5):
            turn = 10000 ** (-j / (width // 4))
            quarter = [positions.table[0, 1 + 6, k * width // 4 + j].item() for k in range(4)]
            expected = [math.sin(2 * turn), math.cos(2 * turn), math.sin(turn), math.cos(turn)]
            assert quarter == pytest.approx(expected, abs=1e-6)


def test_masked_patches_are_predicted_differently():
    outputs = tiny()(torch.randn(1, 3, 32, 32))
    masked = outputs.logits[0, outputs.mask[0] == 1]
    assert torch.pdist(masked).min() > 1e-3


def test_encoder_is_unmasked_and_ordered():
    model = tiny().mae
    pixels = torch.randn(2, 3, 32, 32)
    output = model(pixels)
    assert output.mask is None and output.last_hidden_state.shape == (2, 17, 32)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 1:].mean(1))
    # Raster order: before any block, token 1 + i is patch i through the embedding, plus its position.
    embedded = model(pixels, output_hidden_states=True).hidden_states[0]
    patch = pixels[:, :, 8:16, 16:24].permute(0, 2, 3, 1).flatten(1)  # row 1, column 2 = patch 6
    expected = model.embeddings.patch_embeddings(patch) + model.embeddings.positions.table[:, 7]
    torch.testing.assert_close(embedded[:, 7], expected)


def test_only_visible_patches_reach_the_encoder():
    model = tiny().mae
    seen = []
    model.embeddings.patch_embeddings.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    output = model(torch.randn(2, 3, 32, 32), mask_ratio=0.75)
    assert seen == [4] and output.last_hidden_state.shape[1] == 5


def test_masked_pixels_change_only_the_loss():
    model = tiny(norm_pix_loss=False)
    pixels, masked = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    masked[0, [0, 5, 6, 7]] = True
    changed = pixels.clone()
    changed[:, :, :8, :8] += 1  # patch 0
    before, after = model(pixels, bool_masked_pos=masked), model(changed, bool_masked_pos=masked)
    assert torch.equal(before.logits, after.logits) and before.loss != after.loss
    assert torch.equal(before.mask.bool(), masked)


def test_loss_by_hand():
    model = tiny()
    pixels, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    outputs = model(pixels, noise=noise)
    total, count = 0.0, 0
    for image in range(2):
        for patch in noise[image].argsort()[4:].tolist():  # 16 x 0.25 = 4 stay visible
            row, column = divmod(patch, 4)
            target = pixels[image, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6).sqrt()
            total += ((outputs.logits[image, patch] - target) ** 2).mean().item()
            count += 1
    assert outputs.loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(196, 0.75, 49), (10, 0.9, 1), (64, 0.5, 32), (49, 0.75, 12), (256, 0.6, 102)]
)
def test_visible_count(patches, ratio, visible):
    assert visible_count(patches, ratio) == visible


@pytest.mark.parametrize("mask_type", ["random", "block", "grid"])
def test_masks_have_the_asked_ratio(mask_type):
    mask = tiny(mask_type=mask_type, image_size=[32, 64])(torch.randn(6, 3, 32, 64), mask_ratio=0.5).mask
    assert mask.shape == (6, 32) and (mask.sum(1) == 16).all()


def test_grid_mask_keeps_one_of_every_four():
    mask = tiny(mask_type="grid")(torch.randn(3, 3, 32, 32)).mask.view(3, 4, 4)
    expected = torch.ones(4, 4)
    expected[::2, ::2] = 0
    assert (mask == expected).all()


def test_random_masks_are_uniform_and_blocks_are_coherent():
    generator = torch.Generator().manual_seed(0)

    def masks(kind):
        noise = mask_noise(kind, 2000, (8, 8), generator)
        return (noise.argsort(1).argsort(1) >= 32).view(-1, 8, 8).float()

    random, block = masks("random"), masks("block")
    # 2000 draws of a half: four standard deviations of a patch's frequency are 0.045.
    assert (random.mean(0) - 0.5).abs().max() < 0.06

    def neighbours_alike(mask):
        return (mask[:, :, 1:] == mask[:, :, :-1]).float().mean().item()

    assert neighbours_alike(random) == pytest.approx(31 / 63, abs=0.01)  # drawn without replacement
    assert neighbours_alike(block) > 0.7


def test_reconstruct_pastes_and_unnormalises():
    model = tiny()
    pixels, noise = 3 + 2 * torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    outputs = model(pixels, noise=noise)
    image = model.reconstruct(pixels, noise=noise)
    assert torch.equal(image, model.reconstruct(pixels, outputs))
    for i in range(2):
        order = noise[i].argsort().tolist()
        for rank, patch in enumerate(order):
            row, column = divmod(patch, 4)
            window = (i, slice(None), slice(row * 8, row * 8 + 8), slice(column * 8, column * 8 + 8))
            if rank < 4:
                assert torch.equal(image[window], pixels[window])
            else:
                target = pixels[window]
                predicted = outputs.logits[i, patch].view(8, 8, 3).permute(2, 0, 1)
                torch.testing.assert_close(
                    image[window], predicted * target.std() + target.mean(), atol=1e-4, rtol=1e-4
                )


def test_patchify_round_trip_and_order():
    model = tiny(image_size=[16, 32])
    pixels = torch.arange(3 * 16 * 32, dtype=torch.float32).view(1, 3, 16, 32)
    patches = model.patchify(pixels)
    assert torch.equal(model.unpatchify(patches), pixels)
    # Patch 5 = row 1, column 1; its value 1 is channel 1 of its first pixel.
    assert patches[0, 5, 1] == pixels[0, 1, 8, 8]
    with pytest.raises(ValueError, match="8 patches do not make an image of 32x32"):
        model.unpatchify(patches, (32, 32))


def test_a_step_makes_the_patches_once(monkeypatch):
    made = []
    patchify = MAEForPreTraining.patchify
    for kind in (MAEForPreTraining, MAEModel):
        monkeypatch.setattr(kind, "patchify", lambda self, pixels: made.append(pixels) or patchify(self, pixels))
    tiny()(torch.randn(2, 3, 32, 32)).loss.backward()
    assert len(made) == 1


def test_resized_positions_keep_both_axes():
    # A table that grows linearly along each axis must do so after resizing too, away from the edges.
    ramp = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).view(1, 64, 2)
    table = resize_positions(torch.cat([torch.full((1, 1, 2), 9.0), ramp], 1), (8, 8), (8, 16))
    assert table.shape == (1, 129, 2) and (table[0, 0] == 9).all()
    inner = table[0, 1:].view(8, 16, 2)[:, 4:12]
    torch.testing.assert_close(inner[..., 0], torch.arange(8.0)[:, None].expand(8, 8))
    # torch's cubic kernel (a = -0.75) reproduces a line up to 3/64; a 1-D interpolation is off by whole rows.
    torch.testing.assert_close(
        inner[..., 1], ((torch.arange(4, 12) + 0.5) / 2 - 0.5).expand(8, 8), atol=3.1 / 64, rtol=0
    )


def test_sincos_positions_tell_rows_from_columns():
    table = sincos_positions((2, 3), 8)[0, 1:]
    assert torch.equal(table[0, 4:], table[2, 4:]) and not torch.equal(table[0, :4], table[2, :4])  # same row
    assert torch.equal(table[0, :4], table[3, :4]) and not torch.equal(table[0, 4:], table[3, 4:])  # same column


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 30}, "image_size=30x30 is not a multiple of patch_size=8x8"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=32"),
        ({"decoder_num_attention_heads": 3}, "decoder_num_attention_heads=3 does not divide decoder_hidden_size=16"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0 is outside \(0, 1\)"),
        ({"mask_ratio": 0}, r"mask_ratio=0 is outside \(0, 1\)"),
        ({"prediction_ratio": 0}, r"prediction_ratio=0 is outside \(0, mask_ratio=0.75\]"),
        ({"prediction_ratio": 0.8}, r"prediction_ratio=0.8 is outside \(0, mask_ratio=0.75\]"),
        ({"prediction_ratio": math.nan}, r"prediction_ratio=nan is outside"),
        ({"hidden_size": 30, "num_attention_heads": 5}, "hidden_size=30 is not a multiple of 4"),
        ({"num_channels": 0}, "num_channels=0 must be at least 1"),
        ({"image_size": [32, 32, 3]}, r"image_size=\[32, 32, 3\] is neither a number nor a \(height, width\) pair"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize("changes", [{"mask_type": "stripes"}, {"hidden_size": "wide"}, {"decoder_reads": "all"}])
def test_fields_of_another_type_are_refused_by_transformers(changes):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
        tiny_config(**changes)


def test_transformers_trainer_trains_it(tmp_path):
    images = [{"pixel_values": image} for image in torch.randn(8, 3, 32, 32)]
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), label_names=["pixel_values"], save_steps=2, **options)
    model = tiny()
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = Trainer(model, arguments, train_dataset=images)
    trainer.train()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainer.evaluate(images)["eval_loss"] > 0
    again = MAEForPreTraining.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_impossible_inputs():
    model, pixels = tiny(), torch.randn(2, 3, 32, 32)
    for arguments, message in (
        ((torch.randn(2, 1, 32, 32),), "3 channels"),
        ((torch.randn(2, 3, 33, 32),), "33x32 pixels are not a multiple of the 8x8 patches"),
        ((pixels, torch.rand(2, 15)), r"noise of shape \(2, 15\)"),
        ((pixels, None, torch.ones(2, 16)), "masks 16 of 16"),
        ((pixels, None, torch.tensor([[1] * 12 + [0] * 4, [1] * 11 + [0] * 5])), "between 11 and 12"),
        ((pixels, None, torch.ones(2, 3)), r"bool_masked_pos of shape \(2, 3\)"),
        ((pixels, torch.rand(2, 16), torch.ones(2, 16)), "bool_masked_pos alone"),
        ((pixels, None, None, 1.5), "mask_ratio=1.5 is outside"),
        ((pixels, None, None, 0.99), "mask_ratio=0.99 of 16 patches leaves 0 visible"),
        ((pixels, None, None, None, 0), r"prediction_ratio=0 is outside \(0, 1\]"),
        ((pixels, None, None, None, 1.1), r"prediction_ratio=1.1 is outside \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loss_is_float32_and_finite(dtype):
    model, pixels, noise = tiny(), torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    reference = model(pixels, noise=noise).loss.item()
    with torch.autocast("cpu", dtype):
        loss = model(pixels, noise=noise).loss
    half = tiny().to(dtype)(pixels.to(dtype), noise=noise).loss
    assert loss.dtype == half.dtype == torch.float32
    assert loss.item() == pytest.approx(reference, rel=0.02) and half.item() == pytest.approx(reference, rel=0.02)
    flat = torch.zeros(1, 3, 32, 32, dtype=dtype)  # uniform patches: nothing to divide by
    assert torch.isfinite(tiny().to(dtype)(flat).loss)


@pytest.mark.parametrize(("preset", "millions"), [("base", 85.8), ("large", 303.3), ("huge", 630.8)])
def test_published_parameter_counts(preset, millions):
    config = MAEConfig.from_json_file(PRESETS / f"vit_{preset}.json")
    with torch.device("meta"):
        model = MAEModel(config)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
