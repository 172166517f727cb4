"""Both decoders and the part that is predicted, against attention over all patches with a mask, written out here."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config

from modeling_mae import EvalNet, MAEForPreTraining, MAEModel
from modeling_mae.masking_mae import last_ids, predicted_count
from modeling_mae.report.reconstruction import reconstruct_images


PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
ORDERS = [sorted(range(16), key=image.__getitem__) for image in NOISE.tolist()]  # patches by their noise
READS = ["blocks", "stages", "last"]


def tiny(**changes) -> MAEForPreTraining:
    """Biases and norms are away from 0 and 1, so that each of them counts."""
    torch.manual_seed(0)
    model = MAEForPreTraining(tiny_config(num_hidden_layers=3, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def chosen(ids: list[list[int]], others: int = 0) -> torch.Tensor:
    """True ``(batch, others + 16)`` for these patches of each image, and for `others` tokens before them."""
    return torch.tensor([[True] * others + [patch in image for patch in range(16)] for image in ids])


def attention(query, key, value, heads: int, seen: torch.Tensor) -> torch.Tensor:
    """Every query against every key, ``(batch, tokens, width)``; keys not `seen (batch, keys)` have no part."""
    parts = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        scores = torch.einsum("bqd,bkd->bqk", q, k) / math.sqrt(q.shape[-1])
        parts.append(scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ v)
    return torch.cat(parts, -1)


def block(layer, tokens, heads: int, seen: torch.Tensor) -> torch.Tensor:
    query, key, value = layer.attention.qkv(layer.norm1(tokens)).chunk(3, -1)
    tokens = tokens + layer.attention.proj(attention(query, key, value, heads, seen))
    return tokens + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(tokens))))


def naive(model: MAEForPreTraining, predicted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and the prediction for every patch ``(3, 16, values)``. Only those of predicted patches have a meaning.

    Nothing is gathered: all patches go through both halves of the model, and masks hide what may not be seen."""
    encoder, decoder, config = model.mae, model.decoder, model.config
    visible, last = [order[:4] for order in ORDERS], [order[16 - predicted :] for order in ORDERS]
    seen = chosen(visible, others=1)
    patches = PIXELS.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(3, 16, 192)
    tokens = encoder.embeddings.patch_embeddings(patches)
    cls = encoder.embeddings.cls_token.expand(3, -1, -1)
    tokens = torch.cat([cls, tokens], 1) + encoder.embeddings.positions.table
    outputs = [tokens]
    for layer in encoder.layers:
        outputs.append(block(layer, outputs[-1], config.num_attention_heads, seen))
    encoded = encoder.layernorm(outputs[-1])
    heads = config.decoder_num_attention_heads
    if config.decoder_type == "self":
        hidden = (~seen)[..., None]
        tokens = torch.where(hidden, decoder.mask_token, decoder.embed(encoded)) + decoder.positions.table
        for layer in decoder.layers:
            tokens = block(layer, tokens, heads, seen | chosen(last, others=1))
        tokens = tokens[:, 1:]
    else:
        tokens = (decoder.mask_token + decoder.positions.table[:, 1:]).expand(3, -1, -1)
        for i, layer in enumerate(decoder.layers):
            context = encoded
            if config.decoder_reads != "last":
                weights, first = decoder.weighting.weight[i], {"blocks": 1, "stages": 0}[config.decoder_reads]
                sums = [weight * output for weight, output in zip(weights, outputs[first:], strict=True)]
                context = decoder.context_norms[i](sum(sums))
            key, value = layer.cross_attention.kv(context).chunk(2, -1)
            attended = attention(layer.cross_attention.q(layer.norm1(tokens)), key, value, heads, seen)
            tokens = tokens + layer.cross_attention.proj(attended)
            tokens = tokens + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.norm2(tokens))))
    predictions = decoder.head(decoder.norm(tokens))
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return (predictions - target).square()[chosen(last)].mean(), predictions


@pytest.mark.parametrize(
    ("changes", "predicted"),
    [
        ({}, 12),
        ({"prediction_ratio": 0.25}, 4),
        *(({"decoder_type": "cross", "decoder_reads": reads, "prediction_ratio": 0.3}, 5) for reads in READS),
        ({"decoder_type": "cross"}, 12),
        ({"decoder_type": "cross", "qkv_bias": False}, 12),
    ],
)
def test_predictions_loss_and_gradients_are_those_of_masked_attention(changes, predicted):
    model = tiny(**changes)
    expected_loss, expected = naive(model, predicted)
    expected_loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    outputs = model(PIXELS, noise=NOISE)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss, expected_loss)
    if changes:
        assert outputs.predicted_ids.tolist() == [sorted(order[16 - predicted :]) for order in ORDERS]
        expected = torch.stack([one[ids] for one, ids in zip(expected, outputs.predicted_ids, strict=True)])
        torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    else:  # the paper's decoder predicts the visible patches too
        assert outputs.predicted_ids is None
        torch.testing.assert_close(outputs.logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs.mask, 1 - chosen([order[:4] for order in ORDERS]).float())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("patches", "ratio", "masked", "predicted"),
    [
        (196, 0.25, 147, 49),
        (49, 0.25, 37, 13),  # 12.25, rounded up
        (49, 0.75, 37, 37),  # the masking's own ratio
        (10, 0.3, 9, 3),
        (10, 0.9, 9, 9),
        (196, 1e-9, 147, 1),
        (16, 1, 12, 12),
        (16, 0.75, 4, 4),
    ],
)
def test_predicted_count(patches, ratio, masked, predicted):
    assert predicted_count(patches, ratio, masked) == predicted


def test_the_largest_noise_is_last():
    ids_restore = torch.tensor([[3, 0, 4, 1, 2], [0, 4, 3, 2, 1]])
    assert last_ids(ids_restore, 2).tolist() == [[0, 2], [1, 2]]
    assert last_ids(ids_restore, 4).tolist() == [[0, 2, 3, 4], [1, 2, 3, 4]]


@pytest.mark.parametrize("decoder_type", ["self", "cross"])
def test_predicted_patches_of_every_mask(decoder_type):
    grid = tiny(decoder_type=decoder_type, mask_type="grid", prediction_ratio=0.25)(PIXELS)
    # The mask keeps even rows and columns, and then their diagonal. The lower left of every 2 x 2 is the last.
    assert grid.predicted_ids.tolist() == [[4, 6, 12, 14]] * 3
    block = tiny(decoder_type=decoder_type, mask_type="block", prediction_ratio=0.25)(PIXELS)
    assert block.predicted_ids.shape == (3, 4) and block.mask.gather(1, block.predicted_ids).all()


@pytest.mark.parametrize("decoder_type", ["self", "cross"])
def test_what_is_not_predicted_has_no_part(decoder_type):
    model = tiny(decoder_type=decoder_type, prediction_ratio=0.25, norm_pix_loss=False)
    changed = PIXELS.clone()
    patches = changed.unfold(2, 8, 8).unfold(3, 8, 8)  # a view: (batch, channels, rows, columns, 8, 8)
    for image, order in enumerate(ORDERS):
        for patch in order[4:12]:
            patches[image, :, patch // 4, patch % 4] += 1
    assert torch.equal(model(PIXELS, noise=NOISE).loss, model(changed, noise=NOISE).loss)
    patches[0, :, ORDERS[0][12] // 4, ORDERS[0][12] % 4] += 1
    assert not torch.equal(model(PIXELS, noise=NOISE).loss, model(changed, noise=NOISE).loss)


@pytest.mark.parametrize("decoder_type", ["self", "cross"])
def test_a_mask_of_the_caller_is_predicted_whole(decoder_type):
    model = tiny(decoder_type=decoder_type, prediction_ratio=0.25)
    masked = chosen([[0, 5, 9], [1, 2, 15], [3, 4, 12]])
    outputs = model(PIXELS, bool_masked_pos=masked)
    if decoder_type == "cross":
        assert outputs.predicted_ids.tolist() == [[0, 5, 9], [1, 2, 15], [3, 4, 12]]
    else:
        assert outputs.logits.shape[1] == 16
    visible = (~masked)[..., None].repeat_interleave(192, -1)
    picture = model.patchify(model.reconstruct(PIXELS, outputs))
    assert torch.equal(picture[visible], model.patchify(PIXELS)[visible])


def test_predicting_every_masked_patch_is_the_papers_decoder_to_the_bit():
    plain = tiny()(PIXELS, noise=NOISE)
    for outputs in (
        tiny(prediction_ratio=0.75)(PIXELS, noise=NOISE),
        tiny(prediction_ratio=0.25)(PIXELS, noise=NOISE, prediction_ratio=1),
    ):
        assert torch.equal(plain.logits, outputs.logits) and torch.equal(plain.loss, outputs.loss)


@pytest.mark.parametrize("decoder_type", ["self", "cross"])
@torch.no_grad()
def test_pictures_show_every_masked_patch(decoder_type):
    model = tiny(decoder_type=decoder_type, prediction_ratio=0.25)
    _, predictions = naive(model, 12)
    picture, _ = reconstruct_images(model, PIXELS, NOISE)
    assert torch.equal(picture, model.reconstruct(PIXELS, noise=NOISE))
    for image, order in enumerate(ORDERS):
        for rank, patch in enumerate(order):
            top, left = patch // 4 * 8, patch % 4 * 8
            shown, own = (x[image, :, top : top + 8, left : left + 8] for x in (picture, PIXELS))
            if rank >= 4:
                own = predictions[image, patch].view(8, 8, 3).permute(2, 0, 1) * own.std() + own.mean()
            torch.testing.assert_close(shown, own, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="predict 4 of 12 masked patches; call the model with prediction_ratio=1"):
        model.reconstruct(PIXELS, model(PIXELS, noise=NOISE))


@pytest.mark.parametrize("reads", READS)
def test_cross_decoder_saves_loads_and_gives_its_encoder(reads, tmp_path):
    model = tiny(decoder_type="cross", decoder_reads=reads, prediction_ratio=0.25)
    model.save_pretrained(tmp_path)
    loaded = MAEForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded(PIXELS, noise=NOISE).logits, model(PIXELS, noise=NOISE).logits)
    trained = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert ("mae.layernorm.weight" in trained) == (reads == "last")
    encoder = MAEModel.from_pretrained(tmp_path).eval()
    assert torch.equal(encoder(PIXELS).pooler_output, model.mae(PIXELS).pooler_output)
    assert EvalNet.from_pretrained(tmp_path, num_labels=3).mae.layernorm.weight.requires_grad


def test_hidden_states_are_returned_only_where_asked_for():
    model = tiny()  # its decoder reads them
    asked = model(PIXELS, noise=NOISE, output_hidden_states=True)
    assert len(asked.hidden_states) == 4
    assert "hidden_states" not in model(PIXELS, noise=NOISE)


@pytest.mark.parametrize("size", [(48, 64), (48, 24)])
def test_cross_decoder_at_another_size(size):
    model, patches = tiny(decoder_type="cross", prediction_ratio=0.25), size[0] * size[1] // 64
    images, noise = torch.randn(2, 3, *size), torch.rand(2, patches)
    before = model(images, noise=noise)
    assert before.logits.shape == (2, math.ceil(patches / 4), 192)
    model.set_image_size(size)
    torch.testing.assert_close(model(images, noise=noise).logits, before.logits, atol=1e-5, rtol=1e-5)
    assert model.reconstruct(images).shape == images.shape
