"""Weights in and out: the other project's own class is the truth, on the same images."""

import argparse
import functools
import json
import logging
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import Block, PatchEmbed, VisionTransformer
from torch import nn
from transformers import AutoModel

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEModel, interop
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.errors import UserError
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
HEADS = {"num_attention_heads": 4}


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    """`pytest -sv tests/test_interop.py` shows the differences: the README's table."""
    print(f"\n    largest difference {(one - other).abs().max().item():.1e}", end=" ")
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def randomised(module: nn.Module) -> nn.Module:
    """Every weight and statistic random: what starts as 0 or 1 would hide a swap."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.copy_(1 + 0.1 * noise.abs() if "var" in name or "norm" in name else 0.1 * noise)
    return module.eval()


class Official(nn.Module):
    """The official pre-training model by its published key names, on timm's blocks."""

    def __init__(self):
        super().__init__()
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(32, 8, 3, 64)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 64))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 64))
        self.blocks = nn.ModuleList(Block(64, 4, 2, qkv_bias=True, norm_layer=norm) for _ in range(2))
        self.norm = norm(64)
        self.decoder_embed = nn.Linear(64, 32)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 17, 32))
        self.decoder_blocks = nn.ModuleList(Block(32, 1, 4, qkv_bias=True, norm_layer=norm) for _ in range(1))
        self.decoder_norm = norm(32)
        self.decoder_pred = nn.Linear(32, 8 * 8 * 3)

    def forward(self, images, keep):
        """Prediction ``(batch, patches, values)`` when the patches `keep` alone are seen."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([cls, tokens[:, keep]], 1)
        for block in self.blocks:
            tokens = block(tokens)
        seen = self.decoder_embed(self.norm(tokens))
        full = self.mask_token.repeat(len(images), 16, 1)
        full[:, keep] = seen[:, 1:]
        full = torch.cat([seen[:, :1], full], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            full = block(full)
        return self.decoder_pred(self.decoder_norm(full))[:, 1:]


@pytest.fixture
def said(caplog):
    """What interop told."""
    logger = logging.getLogger("transformers")
    caplog.set_level(logging.WARNING, logger.name)  # an Accelerator that another test has made silences it
    logger.addHandler(caplog.handler)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)


def saved(tmp_path, content, name="weights.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@torch.no_grad()
def test_official_pretraining_file_with_decoder(tmp_path, said):
    theirs = randomised(Official())
    path = saved(tmp_path, {"model": theirs.state_dict(), "args": argparse.Namespace(norm_pix_loss=False), "epoch": 3})
    ours = MAEForPreTraining.from_pretrained(path, **HEADS).eval()
    assert ours.config.norm_pix_loss is False
    assert ours.config.decoder_num_attention_heads == 1
    keep = torch.tensor([2, 3, 7, 12])
    mask = torch.ones(2, 16)
    mask[:, keep] = 0
    same(ours(IMAGES, bool_masked_pos=mask).logits, theirs(IMAGES, keep))
    assert "decoder's heads are not in the file" in said()


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "token"])
def test_encoder_of_official_and_timm_files(tmp_path, pool):
    theirs = randomised(VisionTransformer(**SIZES, num_classes=0, global_pool=pool, fc_norm=False))
    path = saved(tmp_path, {"model": theirs.state_dict()})
    ours = MAEModel.from_pretrained(path, **HEADS, pooling="mean" if pool == "avg" else "cls").eval()
    output = ours(IMAGES)
    same(output.last_hidden_state, theirs.forward_features(IMAGES))
    same(output.pooler_output, theirs(IMAGES))


@torch.no_grad()
def test_official_fine_tuned_file(tmp_path):
    theirs = randomised(VisionTransformer(**SIZES, num_classes=5, global_pool="avg", fc_norm=True))
    ours = EvalNet.from_pretrained(saved(tmp_path, {"model": theirs.state_dict()}), **HEADS).eval()
    same(ours(IMAGES).logits, theirs(IMAGES))


@torch.no_grad()
def test_official_probed_file(tmp_path):
    theirs = VisionTransformer(**SIZES, num_classes=5, global_pool="token")
    theirs.head = nn.Sequential(nn.BatchNorm1d(64, affine=False, eps=1e-6), theirs.head)
    theirs = randomised(theirs)
    ours = EvalNet.from_pretrained(saved(tmp_path, {"model": theirs.state_dict()}), **HEADS).eval()
    same(ours(IMAGES).logits, theirs(IMAGES))


class CrossBlock(nn.Module):
    """CrossMAE's decoder block by its published key names; torch's own attention computes it."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64, eps=1e-6), nn.LayerNorm(64, eps=1e-6)
        self.cross_attn = nn.ModuleDict(
            {"q": nn.Linear(64, 64), "kv": nn.Linear(48, 2 * 64), "proj": nn.Linear(64, 64)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(64, 128), "fc2": nn.Linear(128, 64)})

    def forward(self, queries, context):
        q, kv, proj = (self.cross_attn[name] for name in ("q", "kv", "proj"))
        torchs = nn.MultiheadAttention(64, 2, kdim=48, vdim=48, batch_first=True).eval()
        torchs.load_state_dict(
            {
                "q_proj_weight": q.weight,
                "k_proj_weight": kv.weight[:64],
                "v_proj_weight": kv.weight[64:],
                "in_proj_bias": torch.cat([q.bias, kv.bias]),
                "out_proj.weight": proj.weight,
                "out_proj.bias": proj.bias,
            }
        )
        queries = queries + torchs(self.norm1(queries), context, context, need_weights=False)[0]
        return queries + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(queries))))


class CrossOfficial(nn.Module):
    """CrossMAE's model by its published key names. `maps` 0: no weighting, with a final norm."""

    def __init__(self, maps: int):
        super().__init__()
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(32, 8, 3, 48)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 48))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 48))
        self.blocks = nn.ModuleList(Block(48, 4, 2, qkv_bias=True, norm_layer=norm) for _ in range(3))
        self.maps = maps
        if maps:
            self.wfm = nn.ModuleDict({"linear": nn.Linear(maps, 2, bias=False)})
            self.dec_norms = nn.ModuleList(norm(48) for _ in range(2))
        else:
            self.norm = norm(48)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 64))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 17, 64))
        self.decoder_blocks = nn.ModuleList(CrossBlock() for _ in range(2))
        self.decoder_norm = norm(64)
        self.decoder_pred = nn.Linear(64, 8 * 8 * 3)

    def forward(self, images, keep, predicted):
        """Predictions ``(batch, predicted, values)`` when the patches `keep` alone are seen."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(images), -1, -1)
        outputs = [torch.cat([cls, tokens[:, keep]], 1)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        queries = (self.mask_token + self.decoder_pos_embed)[:, 1 + predicted].expand(len(images), -1, -1)
        for i, block in enumerate(self.decoder_blocks):
            if self.maps:
                weights = self.wfm["linear"].weight[i]
                context = self.dec_norms[i](
                    sum(weight * output for weight, output in zip(weights, outputs[-self.maps :], strict=True))
                )
            else:
                context = self.norm(outputs[-1])
            queries = block(queries, context)
        return self.decoder_pred(self.decoder_norm(queries))


CROSS_HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 2}


@torch.no_grad()
@pytest.mark.parametrize(("maps", "reads"), [(0, "last"), (3, "blocks"), (4, "stages")])
def test_crossmae_file_with_decoder(tmp_path, said, maps, reads):
    theirs = randomised(CrossOfficial(maps))
    arguments = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.8, kept_mask_ratio=0.3)
    path = saved(tmp_path, {"model": theirs.state_dict(), "args": arguments})
    ours, info = MAEForPreTraining.from_pretrained(path, **CROSS_HEADS, output_loading_info=True)
    config = ours.config
    assert (config.decoder_reads, config.mask_ratio, config.prediction_ratio) == (reads, 0.8, 0.3)
    keep, predicted = torch.tensor([2, 3, 12]), torch.tensor([1, 4, 7, 8, 15])
    noise = torch.full((2, 16), 0.5)  # of 16 patches 0.2 stay visible, which is 3, and 0.3 are predicted, which is 5
    noise[:, keep], noise[:, predicted] = 0.0, 1.0
    same(ours(IMAGES, noise=noise).logits, theirs(IMAGES, keep, predicted))
    missing = ["mae.layernorm.bias", "mae.layernorm.weight"] if maps else []
    assert sorted(info["missing_keys"]) == missing and not info["unexpected_keys"]
    assert ("has no final norm" in said()) == bool(maps) and "left out" not in said()
    official = interop.to_official(ours)
    assert all(torch.equal(value, official.pop(key)) for key, value in theirs.state_dict().items())
    assert set(official) == ({"norm.weight", "norm.bias"} if maps else set())


@torch.no_grad()
@pytest.mark.parametrize("maps", [0, 3])
def test_crossmae_file_gives_the_encoder(tmp_path, maps):
    theirs = randomised(CrossOfficial(maps))
    ours = MAEModel.from_pretrained(saved(tmp_path, {"model": theirs.state_dict()}), **CROSS_HEADS).eval()
    tokens = theirs.patch_embed(IMAGES) + theirs.pos_embed[:, 1:]
    tokens = torch.cat([(theirs.cls_token + theirs.pos_embed[:, :1]).expand(2, -1, -1), tokens], 1)
    for block in theirs.blocks:
        tokens = block(tokens)
    norm = nn.LayerNorm(48, eps=1e-6) if maps else theirs.norm
    same(ours(IMAGES).last_hidden_state, norm(tokens))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"wfm.linear.weight": torch.zeros(2, 2)}, "over 2 of 3 encoder blocks"),
        ({"decoder_blocks.0.self_attn.qkv.weight": torch.zeros(192, 64)}, "with self-attention"),
    ],
)
def test_crossmae_decoders_that_ours_lacks_are_left_out(more, why):
    foreign = interop.from_state_dict(CrossOfficial(3).state_dict() | more, **CROSS_HEADS)
    assert not [key for key in foreign.state_dict if key.startswith("decoder.")]
    assert f"because CrossMAE's decoder {why} cannot be read" in " ".join(foreign.notes)


def test_what_a_crossmae_decoder_reads_is_in_its_tensors():
    with pytest.raises(UserError, match="decoder_reads='last' contradicts its tensors.*decoder_reads='blocks'"):
        interop.from_state_dict(CrossOfficial(3).state_dict(), **CROSS_HEADS, decoder_reads="last")


def mae_code_state() -> tuple[dict, nn.ModuleList]:
    """MAE-code's last.ckpt by its key names; torch's own encoder layers hold the same blocks."""
    layers = nn.ModuleList(
        nn.TransformerEncoderLayer(128, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(2)
    )
    randomised(layers)
    state = {
        "encoder.pos_embedding": torch.randn(1, 17, 128),
        "encoder.cls_token": torch.randn(1, 1, 128),
        "encoder.to_patch_embedding.1.weight": 0.1 * torch.randn(128, 192),
        "encoder.to_patch_embedding.1.bias": torch.randn(128),
        "encoder.mlp_head.1.weight": torch.randn(10, 128),
        "mask_token": torch.randn(64),
        "decoder.layers.0.0.fn.to_qkv.weight": torch.randn(1536, 64),
    }
    for i, layer in enumerate(layers):
        layer.self_attn.in_proj_bias.data.zero_()
        for name, theirs in (
            ("0.norm", layer.norm1),
            ("0.fn.to_out.0", layer.self_attn.out_proj),
            ("1.norm", layer.norm2),
            ("1.fn.net.0", layer.linear1),
            ("1.fn.net.3", layer.linear2),
        ):
            for part in ("weight", "bias"):
                state[f"encoder.transformer.layers.{i}.{name}.{part}"] = getattr(theirs, part).detach()
        state[f"encoder.transformer.layers.{i}.0.fn.to_qkv.weight"] = layer.self_attn.in_proj_weight.detach()
    state["to_patch.weight"] = torch.zeros(1)
    return state, layers


@torch.no_grad()
def test_mae_code_checkpoint(tmp_path, said):
    state, layers = mae_code_state()
    arguments = argparse.Namespace(image_size=32, patch_size=8, vit_heads=2, device=torch.device("cpu"))
    path = saved(tmp_path, {"args": arguments, "model": state, "optimizer": {"state": {}}, "epoch": 1}, "last.ckpt")
    ours = MAEModel.from_pretrained(path).eval()
    assert ours.config.qkv_bias is False and ours.config.layer_norm_eps == 1e-5
    rows = IMAGES.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 192)
    tokens = rows @ state["encoder.to_patch_embedding.1.weight"].T + state["encoder.to_patch_embedding.1.bias"]
    tokens = tokens + state["encoder.pos_embedding"][:, 1:]
    embedded = ours.embeddings(ours.patchify(IMAGES), (4, 4), None)
    same(embedded[:, 1:], tokens)
    mine = tokens
    for layer, own in zip(layers, ours.layers, strict=True):
        tokens, mine = layer(tokens), own(mine)
    same(mine, tokens)
    assert "neither class token nor final norm" in said()


def vitmae(**more) -> transformers.ViTMAEForPreTraining:
    config = transformers.ViTMAEConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, **more,
    )  # fmt: skip
    return randomised(transformers.ViTMAEForPreTraining(config))


def version_4_names(state: dict) -> dict:
    """As facebook/vit-mae-* name them on the Hub."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("vit.layers.", "vit.encoder.layer.").replace(".mlp.fc1.", ".intermediate.dense.")
        key = key.replace(".mlp.fc2.", ".output.dense.").replace(".o_proj.", ".output.dense.")
        for part in ("query", "key", "value"):
            key = key.replace(f".attention.{part[0]}_proj.", f".attention.attention.{part}.")
        renamed[key] = value
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("version", [4, 5])
def test_transformers_vitmae_in_and_out(tmp_path, version):
    theirs = vitmae(norm_pix_loss=True)
    theirs.save_pretrained(tmp_path / "theirs")
    if version == 4:
        (tmp_path / "theirs" / "model.safetensors").unlink()
        torch.save(version_4_names(theirs.state_dict()), tmp_path / "theirs" / "pytorch_model.bin")
    noise = torch.rand(2, 16)
    ours = MAEForPreTraining.from_pretrained(tmp_path / "theirs").eval()
    expected, output = theirs(IMAGES, noise=noise), ours(IMAGES, noise=noise)
    same(output.logits, expected.logits)
    same(output.loss, expected.loss)

    interop.to_transformers(ours).save_pretrained(tmp_path / "back")
    assert not list((tmp_path / "back").glob("*.py"))
    back = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "back")
    assert type(back) is transformers.ViTMAEForPreTraining
    same(back(IMAGES, noise=noise).logits, expected.logits)


def vit_config(**more) -> transformers.ViTConfig:
    return transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8,
        layer_norm_eps=1e-6, **more,
    )  # fmt: skip


@torch.no_grad()
def test_transformers_vit_in(tmp_path, said):
    theirs = randomised(transformers.ViTModel(vit_config()))
    theirs.save_pretrained(tmp_path)
    ours = MAEModel.from_pretrained(tmp_path).eval()
    same(ours(IMAGES).last_hidden_state, theirs(IMAGES).last_hidden_state)
    assert "no pooler" in said()


@torch.no_grad()
def test_transformers_classifier_in_and_labels(tmp_path):
    theirs = randomised(transformers.ViTForImageClassification(vit_config(id2label={0: "cat", 1: "dog", 2: "eel"})))
    theirs.save_pretrained(tmp_path)
    ours = EvalNet.from_pretrained(tmp_path).eval()
    same(ours(IMAGES).logits, theirs(IMAGES).logits)
    assert ours.config.id2label == {0: "cat", 1: "dog", 2: "eel"}


def mae(**more) -> MAEConfig:
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "image_size": 32, "patch_size": 8, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64,
    }  # fmt: skip
    return MAEConfig(**{**sizes, **more})


HEAD_KINDS = [(pooling, norm) for pooling in ("cls", "mean") for norm in ("none", "batch", "layer")]


@torch.no_grad()
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_classifier_to_transformers(tmp_path, norm):
    ours = randomised(EvalNet(mae(pooling="cls", head_norm=norm, id2label={0: "a", 1: "b", 2: "c"})))
    interop.to_transformers(ours).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(theirs) is transformers.ViTForImageClassification and theirs.config.id2label[2] == "c"
    same(theirs(IMAGES).logits, ours(IMAGES).logits)


@torch.no_grad()
def test_encoder_to_transformers(tmp_path):
    ours = randomised(MAEModel(mae()))
    interop.to_transformers(ours).save_pretrained(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path)
    assert type(theirs) is transformers.ViTModel
    same(theirs(IMAGES).last_hidden_state, ours(IMAGES).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "norm"), HEAD_KINDS)
def test_classifier_to_timm_and_back(tmp_path, pooling, norm):
    ours = randomised(EvalNet(mae(pooling=pooling, head_norm=norm, num_labels=3)))
    interop.save_timm(ours, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    expected = ours(IMAGES).logits
    same(theirs(IMAGES), expected)
    back = EvalNet.from_pretrained(tmp_path).eval()
    same(back(IMAGES).logits, expected)


def gradient_picture() -> Image.Image:
    y, x = np.mgrid[:50, :70] / 70
    return Image.fromarray((np.stack([x, y, (x + y) / 2], -1) * 255).astype(np.uint8))


@torch.no_grad()
@pytest.mark.parametrize("crop_fraction, size", [(1.0, 32), (0.8, 32), (1.0, (32, 48))])
def test_timm_sees_the_pixels_that_our_processor_makes(tmp_path, crop_fraction, size):
    height, width = size if isinstance(size, tuple) else (size, size)
    processor = image_processor((height, width), [0.3, 0.4, 0.5], [0.2, 0.3, 0.4], 3, crop_fraction)
    ours = randomised(EvalNet(mae(num_labels=3, image_size=[height, width])))
    interop.save_timm(ours, tmp_path, processor)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    picture = gradient_picture()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    expected = processor(picture, return_tensors="pt").pixel_values
    # Tensors and PIL images are resized to values a grey level or two apart. No edge here leaves half a pixel to crop.
    torch.testing.assert_close(transform(picture)[None], expected, atol=3 / 255 / 0.2, rtol=0)
    back = open_checkpoint(tmp_path).processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(back, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "about, size, note",
    [
        ({"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}, 32, False),
        ({"crop_pct": 0.8, "interpolation": "bicubic"}, 32, False),
        ({"mean": None, "std": None, "crop_pct": None}, 32, False),  # timm's own: ImageNet's, 0.875
        ({"crop_pct": 1.0, "crop_mode": "squash"}, (32, 48), False),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, 32, True),
        ({"crop_pct": 1.0, "crop_mode": "border"}, 32, True),
        ({"crop_pct": 0.9, "crop_mode": "center"}, (32, 48), True),
    ],
)
def test_a_timm_folder_is_read_with_its_crop(tmp_path, about, size, note):
    sizes = {**SIZES, "img_size": size}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    input_size = (3, *size) if isinstance(size, tuple) else (3, size, size)
    theirs.pretrained_cfg.update({"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "input_size": input_size, **about})
    save_for_hf(theirs, tmp_path, model_args=sizes, safe_serialization=True)
    opened, picture = open_checkpoint(tmp_path), gradient_picture()
    assert any("the whole image is resized" in line for line in opened.notes) == note
    if not note:
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
        pixels = opened.processor(picture, return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, transform(picture)[None], atol=3 / 255 / 0.2, rtol=0)


@torch.no_grad()
def test_transformers_loads_the_timm_folder(tmp_path):
    ours = randomised(EvalNet(mae(num_labels=3)))
    interop.save_timm(ours, tmp_path)
    theirs = transformers.TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    same(theirs(IMAGES).logits, ours(IMAGES).logits)


@torch.no_grad()
def test_encoder_to_timm_by_checkpoint_path(tmp_path):
    ours = randomised(MAEForPreTraining(mae()))
    interop.save_timm(ours, tmp_path)
    theirs = timm.create_model(
        "vit_base_patch16_224", checkpoint_path=str(tmp_path / "model.safetensors"), num_classes=0, **SIZES
    ).eval()
    expected = ours.mae(IMAGES).last_hidden_state
    same(theirs.forward_features(IMAGES), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "to, model_class",
    [pytest.param("onnx", MAEModel, marks=pytest.mark.slow), ("torch", MAEModel), ("torch", EvalNet)],
)
def test_exported_graphs_at_any_batch(tmp_path, model_class, to):
    ours = randomised(model_class(mae(num_labels=3)))
    path = tmp_path / f"model.{to}"
    interop.export(ours, path, to)
    for batch in (1, 5):
        images = torch.randn(batch, 3, 32, 32)
        output = ours(images)
        expected = [output.logits] if model_class is EvalNet else [output.last_hidden_state, output.pooler_output]
        if to == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found = [torch.from_numpy(x) for x in session.run(None, {"pixel_values": images.numpy()})]
        else:
            found = torch.export.load(path).module()(images)
            found = [found] if model_class is EvalNet else list(found)
        for one, other in zip(found, expected, strict=True):
            same(one, other, 1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_exported_graphs_at_any_size(tmp_path, to):
    ours = randomised(EvalNet(mae(num_labels=3)))
    path = tmp_path / f"model.{to}"
    interop.export(ours, path, to, dynamic_size=True)
    for batch, height, width in ((2, 32, 32), (1, 48, 64), (3, 16, 40)):
        images = torch.randn(batch, 3, height, width)
        if to == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"pixel_values": images.numpy()})[0])
        else:
            found = torch.export.load(path).module()(images)
        same(found, ours(images).logits, 1e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("to", "head"), [("onnx", "linear"), ("onnx", "multiscale"), ("torch", "linear")])
def test_masks_of_exported_graphs_at_any_size(tmp_path, to, head):
    fields = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "segmentation_head": head}
    ours = randomised(MAEForSemanticSegmentation(mae(pooling="flatten", **fields)))
    path = tmp_path / f"model.{to}"
    described = interop.export(ours, path, to, dynamic_size=True)
    for batch, height, width in ((2, 32, 32), (1, 48, 64), (3, 16, 40)):
        images = torch.randn(batch, 3, height, width)
        if to == "onnx":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(["logits"], {"pixel_values": images.numpy()})[0])
        else:
            found = torch.export.load(path).module()(images)
        assert found.shape == (batch, 3, height, width)
        same(found, ours(images).logits, 1e-3 if head == "multiscale" else 1e-4)
    if to == "onnx":
        assert '["a", "b", "c"]' in described and "semantic_segmentation" in described


@pytest.mark.parametrize("to", ["transformers", "vit", "timm"])
def test_a_head_for_masks_stays_behind_with_a_note(tmp_path, to):
    ours = randomised(MAEForSemanticSegmentation(mae(num_labels=3)))
    said = interop.write_model(ours, None, tmp_path / "model", to)
    assert f"note       --to {to} has no head for masks: this is the encoder alone" in said
    if to == "timm":
        theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
        found = theirs.forward_features(IMAGES)
    else:
        found = transformers.ViTModel.from_pretrained(tmp_path / "model", add_pooling_layer=False)(
            IMAGES
        ).last_hidden_state
    same(found, ours.mae(IMAGES).last_hidden_state, 1e-4)


def test_a_head_for_one_size_is_not_exported_for_all(tmp_path):
    with pytest.raises(UserError, match="flatten"):
        interop.export(EvalNet(mae(pooling="flatten")), tmp_path / "model.onnx", "onnx", dynamic_size=True)
    upernet = MAEForSemanticSegmentation(mae(segmentation_head="upernet"))
    with pytest.raises(UserError, match="in ONNX, segmentation_head='upernet' only works for one size"):
        interop.export(upernet, tmp_path / "model.onnx", "onnx", dynamic_size=True)


# --- what cannot be read is said ---


class Harmful:
    def __reduce__(self):
        return print, ("this was run",)


def test_pickles_that_run_code_are_refused(tmp_path, capsys):
    path = saved(tmp_path, {"model": Official().state_dict(), "hook": Harmful()})
    with pytest.raises(ValueError, match=r"weights.pth is refused: .*print"):
        MAEModel.from_pretrained(path)
    assert "this was run" not in capsys.readouterr().out


def test_unknown_files_and_sizes(tmp_path):
    with pytest.raises(ValueError, match="neither an official MAE"):
        MAEModel.from_pretrained(saved(tmp_path, {"layer.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="holds no state dict"):
        MAEModel.from_pretrained(saved(tmp_path, [1, 2]))
    odd = VisionTransformer(**{**SIZES, "embed_dim": 40}, num_classes=0)
    with pytest.raises(ValueError, match="40 wide encoder is not published; give num_attention_heads"):
        MAEModel.from_pretrained(saved(tmp_path, odd.state_dict()))
    flat = VisionTransformer(**{**SIZES, "img_size": (16, 32)}, num_classes=0)
    with pytest.raises(ValueError, match="8 patches do not make a square; give image_size"):
        MAEModel.from_pretrained(saved(tmp_path, flat.state_dict()), **HEADS)
    ours = MAEModel.from_pretrained(tmp_path / "weights.pth", **HEADS, image_size=[16, 32])
    assert ours.config.grid == (2, 4)
    with pytest.raises(UserError, match=r"image_size=\[16, 32, 3\] is neither a number nor a \[height, width\] pair"):
        MAEModel.from_pretrained(tmp_path / "weights.pth", **HEADS, image_size=[16, 32, 3])


def test_extra_keys_and_class_counts_are_told(tmp_path, said):
    theirs = randomised(VisionTransformer(**SIZES, num_classes=5, global_pool="avg", fc_norm=True))
    path = saved(tmp_path, theirs.state_dict() | {"teacher.weight": torch.zeros(1)})
    ours = EvalNet.from_pretrained(path, **HEADS, num_labels=7, ignore_mismatched_sizes=True)
    assert "left out, because our models lack them: teacher.weight" in said()
    assert "head.weight" in said() and ours.head.out_features == 7
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        EvalNet.from_pretrained(path, **HEADS, num_labels=7)


@torch.no_grad()
def test_positions_at_another_size(tmp_path):
    theirs = randomised(VisionTransformer(**SIZES, num_classes=0))
    ours = MAEModel.from_pretrained(saved(tmp_path, theirs.state_dict()), **HEADS).eval()
    ours.set_image_size(48)
    patches = theirs.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    larger = nn.functional.interpolate(patches, (6, 6), mode="bicubic").flatten(2).transpose(1, 2)
    same(ours.embeddings.positions.table[:, 1:], larger)
    assert math.prod(ours.config.grid) == 36


def poked(config: MAEConfig, **fields) -> MAEConfig:
    """`config` with values that MAEConfig does not know yet."""
    config.__dict__.update(fields)
    return config


def to_timm(model):
    return interop.save_timm(model, Path("/nonexistent/never/written"))


REFUSALS = [
    (interop.to_transformers, MAEForPreTraining, "decoder_type", "cross", "ViTMAEForPreTraining", "--to vit"),
    (
        interop.to_transformers,
        MAEForPreTraining,
        "prediction_ratio",
        0.5,
        "ViTMAEForPreTraining",
        "prediction_ratio=null",
    ),
    (
        interop.to_transformers,
        MAEForPreTraining,
        "uniformity_weight",
        0.01,
        "ViTMAEForPreTraining",
        "uniformity_weight=0",
    ),
    (interop.to_transformers, MAEForPreTraining, "pooling", "attention", "ViTMAEForPreTraining", "--set pooling="),
    (interop.to_transformers, MAEForPreTraining, "mask_type", "grid", "ViTMAEForPreTraining", "--set mask_type="),
    (interop.to_transformers, MAEModel, "pooling", "attention", "ViTModel", "--set pooling="),
    (interop.to_transformers, EvalNet, "pooling", "attention", "ViTForImageClassification", "--to onnx"),
    (interop.to_transformers, EvalNet, "pooling", "mean", "ViTForImageClassification", "--to timm"),
    (to_timm, EvalNet, "pooling", "attention", "timm's VisionTransformer", "--to onnx"),
    (to_timm, EvalNet, "pooling", "flatten", "timm's VisionTransformer", "--to onnx"),
    (to_timm, EvalNet, "hidden_act", "relu", "timm's VisionTransformer", "--to onnx"),
    (to_timm, MAEModel, "pooling", "attention", "timm's VisionTransformer", "--set pooling="),
    (to_timm, MAEForPreTraining, "pooling", "attention", "timm's VisionTransformer", "--set pooling="),
    (to_timm, MAEModel, "layer_norm_eps", 1e-5, "timm's VisionTransformer", "--to onnx"),
]


@pytest.mark.parametrize(("write", "model_class", "field", "value", "layout", "remedy"), REFUSALS)
def test_what_a_layout_cannot_express_is_refused(write, model_class, field, value, layout, remedy):
    model = model_class(mae(num_labels=2))
    poked(model.config, **{field: value})
    with pytest.raises(UserError, match=rf"{remedy}") as refused:
        write(model)
    message = str(refused.value)
    assert layout in message and f"{field}={value!r}" in message and "\n" not in message


def test_every_written_layout_names_its_poolings_and_decoders():
    for layout, fields in interop.LAYOUTS.items():
        assert "pooling" in fields and "attention" not in fields["pooling"].values
        assert ("decoder_type" in fields) == ("ViTMAE" in layout)


@torch.no_grad()
def test_layouts_without_a_decoder_leave_it_behind(tmp_path):
    ours = randomised(MAEForPreTraining(mae(decoder_type="cross")))
    interop.save_timm(ours, tmp_path)
    written = set(interop.load_tensors(tmp_path / "model.safetensors")[0])
    assert written == set(VisionTransformer(**SIZES, num_classes=0).state_dict())
    same(interop.to_transformers(ours.mae)(IMAGES).last_hidden_state, ours.mae(IMAGES).last_hidden_state)


@torch.no_grad()
def test_vitmae_takes_squares_and_vit_takes_any(tmp_path):
    ours = randomised(MAEForPreTraining(MAEConfig(**{**mae().to_dict(), "image_size": [16, 32]})))
    with pytest.raises(UserError, match=r"image_size=\[16, 32\], patch_size=8: .*only carries squares; --to vit"):
        interop.to_transformers(ours)
    theirs = interop.to_transformers(ours.mae)
    images = IMAGES[:, :, :16]
    same(theirs(images).last_hidden_state, ours.mae(images).last_hidden_state)


@pytest.mark.parametrize(("own", "other"), [("self", "cross"), ("cross", "self")])
def test_a_decoder_of_another_type_than_asked_for_is_left_out(own, other):
    state = (Official() if own == "self" else CrossOfficial(3)).state_dict()
    foreign = interop.from_state_dict(state, **CROSS_HEADS, decoder_type=other)
    assert foreign.config.decoder_type == other
    assert not [key for key in foreign.state_dict if key.startswith("decoder.")]
    notes = " ".join(foreign.notes)
    assert "left out" in notes and f"decoder_type={own!r}, not {other!r}" in notes


def test_poolings_of_timm_that_are_unknown_here_are_told(tmp_path, said):
    interop.save_timm(MAEModel(mae()), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model_args"]["global_pool"] = "map"
    (tmp_path / "config.json").write_text(json.dumps(content))
    state, *_ = interop.load_tensors(tmp_path / "model.safetensors")
    save_file(state | {"attn_pool.latent": torch.zeros(1, 1, 64)}, tmp_path / "model.safetensors")
    MAEModel.from_pretrained(tmp_path)
    assert "no pooling like global_pool='map'; choose one with pooling=" in said()
    assert "left out: 1 tensors (attn_pool.latent ...)" in said()
