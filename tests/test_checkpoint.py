"""The one door: every project's checkpoint gives what its own model gives, from every command and both scripts."""

import json
import os
import pathlib
import re

import huggingface_hub
import numpy as np
import pandas
import pytest
import timm
import torch
import transformers
from conftest import run
from PIL import Image
from safetensors.torch import load_file, save_file
from test_interop import IMAGES, SIZES, CrossOfficial, Official, mae, randomised, same, vit_config, vitmae
from timm.models import save_for_hf

from modeling_mae import EvalNet, MAEForPreTraining, MAEModel
from modeling_mae.app.explorer import Explorer
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.commands.convert import convert
from modeling_mae.data.serve.processor import Processing, image_processor
from modeling_mae.errors import UserError
from modeling_mae.evaluation import extract_features, predict


HEADS = {"num_attention_heads": 4}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def vit(folder):
    model = transformers.ViTForImageClassification(vit_config(id2label={0: "cat", 1: "dog", 2: "eel"}))
    model = randomised(model)
    model.save_pretrained(folder)
    image_processor((32, 32), MEAN, STD, 3).save_pretrained(folder)
    return model, lambda images: model.vit(images).last_hidden_state


def vit_mae(folder):
    model = vitmae(mask_ratio=0.0)
    model.save_pretrained(folder)
    image_processor((32, 32), MEAN, STD, 3).save_pretrained(folder)
    noise = torch.arange(16.0).expand(len(IMAGES), 16)  # nothing is masked, and the order stays
    return model, lambda images: model.vit(images, noise=noise[: len(images)]).last_hidden_state


def timm_folder(folder):
    model = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=3, global_pool="token", **SIZES))
    model.pretrained_cfg.update(mean=MEAN, std=STD, crop_pct=1.0)
    save_for_hf(model, folder, model_args={**SIZES, "global_pool": "token"}, safe_serialization=True)
    return model, model.forward_features


FOLDERS = {"vit": vit, "vit_mae": vit_mae, "timm": timm_folder}


@torch.no_grad()
@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_others_give_what_their_own_model_gives(tmp_path, kind):
    theirs, tokens_of = FOLDERS[kind](tmp_path / "theirs")
    fields = {"mask_ratio": 0.75} if kind == "vit_mae" else {}
    opened = open_checkpoint(tmp_path / "theirs", fields)
    assert not opened.is_ours and (opened.processing.mean, opened.processing.std) == (MEAN, STD)
    assert opened.own_size == (32, 32) and opened.config.image_height_width == (32, 32)
    same(opened.encoder().eval()(IMAGES).last_hidden_state, tokens_of(IMAGES))
    if kind == "vit_mae":
        assert opened.kind is MAEForPreTraining
        theirs.config.mask_ratio = theirs.vit.embeddings.config.mask_ratio = 0.75
        noise = torch.rand(2, 16)
        same(opened.beginning().model.eval()(IMAGES, noise=noise).logits, theirs(IMAGES, noise=noise).logits)
    else:
        assert opened.kind is EvalNet
        expected = theirs(IMAGES)
        same(opened.classifier().eval()(IMAGES).logits, getattr(expected, "logits", expected))


@torch.no_grad()
def test_files_of_others_give_what_their_own_model_gives(tmp_path):
    for name, theirs, kind in (("official", Official(), MAEForPreTraining), ("cross", CrossOfficial(0), None)):
        theirs = randomised(theirs)
        torch.save({"model": theirs.state_dict()}, tmp_path / f"{name}.pth")
        opened = open_checkpoint(tmp_path / f"{name}.pth", {**HEADS, "decoder_num_attention_heads": 2 - bool(kind)})
        assert opened.kind is MAEForPreTraining
        assert opened.processing == Processing([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], None, 255)
        assert "assuming ImageNet's mean and deviation" in opened.notes_text()
        tokens = theirs.patch_embed(IMAGES) + theirs.pos_embed[:, 1:]
        tokens = torch.cat([(theirs.cls_token + theirs.pos_embed[:, :1]).expand(2, -1, -1), tokens], 1)
        for block in theirs.blocks:
            tokens = block(tokens)
        same(opened.encoder().eval()(IMAGES).last_hidden_state, theirs.norm(tokens))


@torch.no_grad()
def test_every_command_reads_every_project(tmp_path):
    """Features, predictions, the app and a conversion, against the project's own model on the same pixels."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    values = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD
    )[:, None, None]
    for kind in ("vit", "timm"):
        theirs, tokens_of = FOLDERS[kind](tmp_path / kind)
        features = extract_features(tmp_path / kind, tmp_path / "images", pooling="cls", num_workers=0)
        same(torch.from_numpy(features.values), tokens_of(values)[:, 0], 1e-4)
        logits = theirs(values)
        logits = getattr(logits, "logits", logits)
        table = predict(tmp_path / kind, tmp_path / "images", num_workers=0)
        assert isinstance(table, pandas.DataFrame)
        same(torch.tensor(table["confidence"].to_numpy()), logits.softmax(-1).max(-1).values, 1e-4)
        explorer = Explorer(str(tmp_path / kind))
        look = explorer.open((tmp_path / "images" / "0.png").read_bytes(), "0.png")
        same(look.stages[-1], explorer.encoder(values[:1], output_hidden_states=True).hidden_states[-1], 1e-4)
        convert(str(tmp_path / kind), tmp_path / f"{kind}-ours")
        same(EvalNet.from_pretrained(tmp_path / f"{kind}-ours").eval()(values).logits, logits, 1e-4)


@pytest.mark.slow
def test_the_scripts_start_from_any_checkpoint(tmp_path):
    """run_pretrain.py from a ViT without a decoder; run_eval.py tests a classifier of transformers as it is."""
    theirs, _ = vit(tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\nbase_model: me/origin\n---\n# A ViT\n")
    for label in ("cat", "dog", "eel"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    common = ("--train_dir", tmp_path / "images", "--report_to", "none", "--dataloader_num_workers", 0)
    small = ("decoder_hidden_size=32", "decoder_num_hidden_layers=1", "decoder_num_attention_heads=2")
    words = ("--total_batch_size", 4, "--per_device_train_batch_size", 4, "--max_train_steps", 1, "--warmup_epochs", 0)
    words += ("--base_learning_rate", 1e-12, "--config_overrides", *small, "decoder_intermediate_size=32")
    words += ("--model_name_or_path", tmp_path / "theirs")
    output = run(*common, *words, "--output_dir", tmp_path / "run")
    assert "theirs: it has no decoder: the decoder is newly initialised" in output
    trained = MAEModel.from_pretrained(tmp_path / "run").eval()  # at such a rate the encoder stays theirs
    with torch.no_grad():
        same(trained(IMAGES).last_hidden_state, theirs.vit(IMAGES).last_hidden_state)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "base_model: me/origin" in card and "Their licence is cc-by-nc-4.0." in card
    words = (
        "--model_name_or_path",
        tmp_path / "theirs",
        "--do_train",
        "false",
        "--validation_dir",
        tmp_path / "images",
    )
    run(*common, *words, "--output_dir", tmp_path / "tested", script="run_eval.py")
    results = json.loads((tmp_path / "tested" / "results.json").read_text())
    assert results[0]["name"] == "checkpoint"
    values = []
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        values.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None])
    with torch.no_grad():
        logits = theirs(torch.stack(values) / torch.tensor(STD)[:, None, None]).logits
    right = torch.stack([logits.argmax(-1) == label for label in range(3)]).float().mean().item()
    assert results[0]["accuracy"] == pytest.approx(right)


# --- prefixes, and what stands beside the weights ---


def timm_state():
    return randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIZES)).state_dict()


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "encoder.", "backbone.", "backbone.vit.", "module.base_encoder.", "module._orig_mod."],
)
@pytest.mark.parametrize("place", [None, "state_dict", "model", "model_ema", "teacher", "net"])
def test_prefixes_and_places_are_recognised(tmp_path, prefix, place):
    state = timm_state()
    named = {prefix + key: value for key, value in state.items()}
    if prefix == "backbone.":
        named["classifier.weight"] = torch.zeros(3, 3)
    content = {place: named, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}} if place else named
    torch.save(content, tmp_path / "weights.pth")
    opened = open_checkpoint(tmp_path / "weights.pth", HEADS)
    assert torch.equal(opened.encoder().layers[1].mlp.fc1.weight, state["blocks.1.mlp.fc1.weight"])
    assert ("left out: 1 tensors (classifier.weight" in opened.notes_text()) == (prefix == "backbone.")


def test_of_several_sets_of_weights_one_is_named(tmp_path):
    state = timm_state()
    student = {f"backbone.{key}": value + 1 for key, value in state.items()}
    torch.save({"student": student, "teacher": {"backbone." + k: v for k, v in state.items()}}, tmp_path / "dino.pth")
    norms = []
    for fields in ({}, {"prefix": "student.backbone"}, {"prefix": "teacher.backbone."}):
        opened = open_checkpoint(tmp_path / "dino.pth", {**HEADS, **fields})
        norms.append(opened.encoder().layernorm.weight)
        note = "reading the one below 'teacher.backbone.'; prefix=student.backbone reads another"
        assert (note in opened.notes_text()) == (not fields)
    assert torch.equal(norms[0], state["norm.weight"]) and torch.equal(norms[1], state["norm.weight"] + 1)
    assert torch.equal(norms[0], norms[2])
    with pytest.raises(UserError, match="no tensor's name begins with prefix='momentum'"):
        open_checkpoint(tmp_path / "dino.pth", {"prefix": "momentum"})


def test_numbers_of_numpy_and_paths_beside_the_weights(tmp_path):
    beside = {"best": np.float64(0.5), "curve": np.arange(3), "step": np.int64(3), "out": pathlib.Path("x")}
    torch.save({"model": timm_state(), **beside}, tmp_path / "weights.pth")
    assert open_checkpoint(tmp_path / "weights.pth", HEADS).kind is MAEModel


def test_transformers_names_in_a_bare_file(tmp_path):
    theirs = randomised(transformers.ViTModel(vit_config(), add_pooling_layer=False))
    torch.save({f"model.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "vit.ckpt")
    opened = open_checkpoint(tmp_path / "vit.ckpt", {**HEADS, "layer_norm_eps": 1e-6})
    with torch.no_grad():
        same(opened.encoder().eval()(IMAGES).last_hidden_state, theirs(IMAGES).last_hidden_state)


def test_a_weights_file_beside_its_configuration_is_its_folder(tmp_path):
    MAEForPreTraining(mae()).save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path / "model.safetensors")
    assert opened.is_ours and opened.kind is MAEForPreTraining
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="weights of this project without their config.json; give the folder"):
        open_checkpoint(tmp_path / "model.safetensors")


# --- strangers' JSON ---


@pytest.fixture
def ours(tmp_path):
    EvalNet(mae(id2label={0: "a", 1: "b"})).save_pretrained(tmp_path / "ours")
    image_processor((32, 32), MEAN, STD, 3).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


DEEP = "[" * 10**5 + "]" * 10**5
LABELS = [
    {"0": "a", "x": "b"},
    {"0": "a", "2": "b"},
    {"0": "a", "1": None},
    {"0": "a", "1": ["b"]},
    {"0": "a", "٢": "b"},
    {"0": "a", "-1": "b"},
    ["a", "b"],
    "ab",
    {str(i): "a" for i in range(100_001)},
]


@pytest.mark.parametrize("labels", LABELS)
def test_a_bad_row_of_id2label(ours, labels):
    edit(ours / "config.json", id2label=labels)
    with pytest.raises(UserError, match="id2label") as error:
        open_checkpoint(ours)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_very_many_labels_are_refused_before_they_are_read(ours):
    config = (ours / "config.json").read_text().rstrip()[:-1]
    labels = ",".join(f'"{i}": "label {i}"' for i in range(10**6))
    (ours / "config.json").write_text(f'{config}, "id2label": {{{labels}}}}}')
    with pytest.raises(UserError, match="its config.json has more than 16 MiB"):
        open_checkpoint(ours)


@pytest.mark.parametrize(
    "values",
    [
        *({"architectures": value} for value in (3, True, {"a": 1}, [[]], "x")),
        *({"dtype": value} for value in (3, [], [[]], True, "float3")),
        *({"intermediate_size": value} for value in (10**12, "x", None, [1])),
        {"num_channels": 10**12},
    ],
)
def test_a_configuration_that_makes_no_model(ours, values):
    edit(ours / "config.json", **values)
    with pytest.raises(UserError) as error:
        open_checkpoint(ours).model()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "patch_size", "image_size"])
def test_a_configuration_of_others_that_makes_no_model(tmp_path, field):
    vit(tmp_path / "vit")
    edit(tmp_path / "vit" / "config.json", **{field: 0})
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path / "vit").model()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [DEEP, "", "[]", "3", "{", '{"model_type": "mae", "id2label": ' + DEEP + "}", "\xff"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_files_that_are_no_json_objects(ours, file, text):
    (ours / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=file) as error:
        open_checkpoint(ours).processing  # noqa: B018
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": [0.5, float("nan"), 0.5]},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": [0.5, -1, 0.5]},
        {"image_std": [0.5, 0.5]},
        {"image_mean": "half"},
        {"image_mean": ["a", "b", "c"]},
        {"image_std": None},
        {"image_mean": {}},
        {"size": "large"},
        {"do_center_crop": True, "crop_size": None, "size": {"shortest_edge": "x"}, "crop_fraction": None},
        {"crop_fraction": 7},
        {"crop_fraction": "x"},
        {"image_processor_type": 3},
        {"image_processor_type": "NoSuchProcessor"},
    ],
)
def test_processors_that_make_no_images(ours, values):
    edit(ours / "preprocessor_config.json", **values)
    with pytest.raises(UserError, match="image processor") as error:
        open_checkpoint(ours).processing  # noqa: B018
    assert "\n" not in str(error.value)


def test_a_configuration_that_may_not_be_read(ours, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_text", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"its config.json cannot be read \(Permission denied\)"):
        open_checkpoint(ours)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("file", "content"),
    [(INDEX, "[]"), (INDEX, "{}"), (INDEX, '{"weight_map": {"a": 3}}'), ("pytorch_model.bin", [1, 2])],
)
def test_weights_that_are_none(ours, file, content):
    (ours / "model.safetensors").unlink()
    torch.save(content, ours / file) if isinstance(content, list) else (ours / file).write_text(content)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        open_checkpoint(ours).model()
    assert "\n" not in str(error.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_failed(ours, value):
    weights = load_file(ours / "model.safetensors")
    name = "mae.encoder.layer.0.attention.output.dense.weight"
    name = name if name in weights else sorted(weights)[-1]
    weights[name].flatten()[-1:].fill_(value)
    save_file(weights, ours / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"values in {re.escape(name)} that are not finite"):
        open_checkpoint(ours).classifier()


def test_code_of_weights_is_never_run(ours, tmp_path):
    (ours / "model.safetensors").unlink()
    torch.save({"a": Evil(tmp_path / "ran")}, ours / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"it wants to run \S+\.mkdir. If you trust it, load it with torch"):
        open_checkpoint(ours).model()
    assert not (tmp_path / "ran").exists()
    torch.load(ours / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # the test can fail


@pytest.mark.parametrize("values", [{"hidden_size": 10**30, "num_attention_heads": 1}, {"intermediate_size": 10**30}])
def test_sizes_that_no_machine_has(ours, values):
    edit(ours / "config.json", **values)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        open_checkpoint(ours).model()
    assert "\n" not in str(error.value)


def test_code_of_a_processor_is_never_run(ours, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    content = {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "image_processor_type": "Evil"}
    (ours / "preprocessor_config.json").write_text(json.dumps(content))
    (ours / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UserError, match=r"custom code \(evil.Evil\), which is never run") as error:
        open_checkpoint(ours).processing  # noqa: B018
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="never run"):
        convert(str(ours), tmp_path / "x", "vit", pooling="cls")


def test_a_mismatch_names_field_values_and_remedy(ours):
    with pytest.raises(UserError, match="num_channels=1 contradicts its tensors, which have num_channels=3; leave"):
        open_checkpoint(ours, {"num_channels": 1})
    assert open_checkpoint(ours, {"decoder_hidden_size": 64}).beginning().model.config.decoder_hidden_size == 64
    edit(ours / "config.json", intermediate_size=96)
    with pytest.raises(UserError, match=r"is 128 in its file and 96 by its configuration: give fields that fit"):
        open_checkpoint(ours).encoder()


def test_the_hub_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder here nor a Hub id that can be reached"):
        open_checkpoint("me/nothing-of-this-name")
