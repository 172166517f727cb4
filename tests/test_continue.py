"""Going on from weights that exist: other bands and patches by closed forms, what is trained when, the verdict."""

import dataclasses
import json
import math

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from conftest import TINY_GRAY, TWO_PROCESSES, assert_same_run, assert_same_weights, run, tiny_config
from safetensors.torch import load_file
from test_checkpoint import FOLDERS
from test_growth import log_of, small_growth

from configuration import ArgumentError, PretrainArguments, model_config, parse_arguments
from configuration.own_images import settle
from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEModel
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.find.facts import ImageFacts
from modeling_mae.data.find.sources import BUNDLED
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.data.serve.processor import Processing
from modeling_mae.data.serve.statistics import keep_mean_std
from modeling_mae.errors import UserError
from modeling_mae.interop.patches import fit_reading, resize_matrix
from modeling_mae.modeling_mae import resize_positions
from modeling_mae.report.advice import judge_start
from modeling_mae.training.manifest import read_manifest
from modeling_mae.training.optim import LengthSettings, OptimizerSettings, Schedule, make_optimizer, parameter_groups
from modeling_mae.training.trials import Trial
from modeling_mae.training.tuning import TuningSettings


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two tiny checkpoints with a decoder and random biases: of three bands, and `gray`, of one."""
    folder = tmp_path_factory.mktemp("start")
    for name, config in (("colour", tiny_config()), ("gray", MAEConfig(**TINY_GRAY))):
        torch.manual_seed(1)
        model = MAEForPreTraining(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return folder


# --- other bands ---


@torch.no_grad()
@pytest.mark.parametrize("new_bands, bands", [("mean", 5), ("mean", 1), ("rgb:3,2,1", 5), ("rgb:2,3,1", 3)])
def test_an_image_that_is_constant_over_its_bands_gives_the_same_tokens(place, new_bands, bands):
    checkpoint = open_checkpoint(place / "colour")
    before = checkpoint.beginning().model.eval()
    fitted = checkpoint.fitted({"num_channels": bands}, new_bands).beginning()
    after = fitted.model.eval()
    assert not fitted.new and after.config.num_channels == bands
    classifier = checkpoint.fitted({"num_channels": bands}, new_bands).classifier()
    gray, noise = torch.randn(2, 1, 32, 32), torch.rand(2, 16)
    images = [gray.expand(2, count, 32, 32) for count in (3, bands)]
    close(after.mae(images[1]).last_hidden_state, before.mae(images[0]).last_hidden_state)
    for model in (checkpoint.fitted({"num_channels": bands}, new_bands).encoder().eval(), classifier.mae.eval()):
        assert model.config.num_channels == bands
        close(model(images[1]).last_hidden_state, before.mae(images[0]).last_hidden_state)
    # The decoder predicts a known band as before, and any other as the mean of the three.
    old, new = (m(x, noise=noise).logits.unflatten(2, (64, -1)) for m, x in zip((before, after), images, strict=True))
    places = {"rgb:3,2,1": {2: 0, 1: 1, 0: 2}, "rgb:2,3,1": {1: 0, 2: 1, 0: 2}}.get(new_bands, {})
    for band in range(bands):
        close(new[..., band], old[..., places[band]] if band in places else old.mean(-1))


def test_placed_bands_read_their_colour(place):
    checkpoint = open_checkpoint(place / "colour")
    before, after = (
        one.beginning().model.mae.embeddings.patch_embeddings.weight.unflatten(1, (64, -1))  # (width, pixels, bands)
        for one in (checkpoint, checkpoint.fitted({"num_channels": 5}, "rgb:4,2,1"))
    )
    for band, expected in {3: before[..., 0], 1: before[..., 1], 0: before[..., 2], 2: before.mean(-1)}.items():
        close(after[..., band], 3 / 5 * expected)


def test_random_bands_are_new(place):
    checkpoint = open_checkpoint(place / "colour").fitted({"num_channels": 5}, "random")
    beginning = checkpoint.beginning()
    layers = ("mae.embeddings.patch_embeddings", "decoder.head")
    assert beginning.new == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    weight = beginning.model.mae.embeddings.patch_embeddings.weight
    assert weight.abs().max() <= math.sqrt(6 / (5 * 64 + 32)) and not beginning.model.decoder.head.bias.any()  # xavier
    assert beginning.new_parts == ["prediction layer", "patch projection"] and checkpoint.has_new_parts


@pytest.mark.parametrize(
    "bands, new_bands, message",
    [
        (3, "mean", "the checkpoint has 3 bands already: leave it out"),
        (5, None, "its weights have 3: give --new_bands mean, random or rgb:3,2,1"),
        (5, "rgb:3,2,6", "three different bands in 1 ... 5"),
        (5, "rgb:3,2,2", "three different bands"),
    ],
)
def test_bands_that_do_not_fit(place, bands, new_bands, message):
    with pytest.raises(UserError, match=message):
        open_checkpoint(place / "colour").fitted({"num_channels": bands}, new_bands)


# --- another patch size ---


@torch.no_grad()
@pytest.mark.parametrize("patch", [16, [8, 12]])
def test_patches_that_are_resized_up_give_the_same_tokens(place, patch):
    checkpoint = open_checkpoint(place / "colour")
    before, patch_size = checkpoint.beginning().model.eval(), patch if isinstance(patch, list) else [patch] * 2
    fields = {"patch_size": patch, "image_size": [4 * side for side in patch_size]}
    after = checkpoint.fitted(fields).beginning().model.eval()
    assert after.config.grid == (4, 4) and after.config.image_size == fields["image_size"]
    images = torch.randn(2, 3, 32, 32)
    patches = before.patchify(images).unflatten(2, (8, 8, 3)).permute(0, 1, 4, 2, 3).flatten(0, 1)
    larger = F.interpolate(patches, patch_size, mode="bilinear", align_corners=False)
    larger = after.unpatchify(larger.permute(0, 2, 3, 1).flatten(1).unflatten(0, (2, 16)))
    close(after.mae(larger).last_hidden_state, before.mae(images).last_hidden_state)
    # The decoder predicts the resized patch.
    noise = torch.rand(2, 16)
    old, new = before(images, noise=noise).logits, after(larger, noise=noise).logits
    expected = old.unflatten(2, (8, 8, 3)).permute(0, 1, 4, 2, 3).flatten(0, 1)
    expected = F.interpolate(expected, patch_size, mode="bilinear", align_corners=False)
    close(new.flatten(0, 1), expected.permute(0, 2, 3, 1).flatten(1))


def test_patches_that_are_resized_down_change_least():
    torch.manual_seed(0)
    weight, pixels = torch.randn(3, 64, dtype=torch.float64), resize_matrix((8, 8), (4, 6))
    found = fit_reading(weight, torch.ones(1, 1, dtype=torch.float64), pixels)
    expected = np.linalg.lstsq(pixels.T.numpy(), weight.T.numpy(), rcond=None)[0]  # min ||B' w - w_old||
    np.testing.assert_allclose(found.T.numpy(), expected, atol=1e-10)


def test_a_finer_grid_interpolates_positions(place):
    checkpoint = open_checkpoint(place / "colour")
    before, after = checkpoint.beginning().model, checkpoint.fitted({"patch_size": 4}).beginning().model
    for old, new in (
        (before.mae.embeddings.positions, after.mae.embeddings.positions),
        (before.decoder.positions, after.decoder.positions),
    ):
        assert torch.equal(new.table, resize_positions(old.table, (4, 4), (8, 8))) and new.grid == (8, 8)
    after.save_pretrained(place / "fine")
    again = MAEForPreTraining.from_pretrained(place / "fine")
    assert again(torch.randn(1, 3, 32, 32)).loss.isfinite()


def test_the_own_patch_size_fits_nothing(place):
    fitted = open_checkpoint(place / "colour").fitted({"patch_size": 8, "image_size": 64})
    assert fitted.patches is None and fitted.config.image_size == 64
    before, after = open_checkpoint(place / "colour").beginning().model, fitted.beginning().model
    assert torch.equal(before.decoder.head.weight, after.decoder.head.weight) and after.config.grid == (8, 8)


def test_new_weights_are_the_same_whenever_they_are_made(place):
    """The baseline of the starting weights is made apart from the training's model."""
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(open_checkpoint(place / "colour").fitted({"num_channels": 4}, "random").beginning().model)
    assert_same_weights(models[0].state_dict(), models[1].state_dict())


# --- what is new, and what is trained when ---


def test_parts_that_were_loaded_and_parts_that_are_new(place, tmp_path):
    assert open_checkpoint(place / "colour").beginning().about.endswith("M parameters loaded, none new")
    for kind, make in FOLDERS.items():
        make(tmp_path / kind)
        beginning = open_checkpoint(tmp_path / kind, {"mask_ratio": 0.75}).beginning()
        assert beginning.new_parts == ([] if kind == "vit_mae" else ["decoder"])
        trained = {name for name, value in beginning.model.named_parameters() if value.requires_grad}
        assert beginning.new == {name for name in trained if name.startswith("decoder.") and kind != "vit_mae"}
    EvalNet(tiny_config(head_norm="layer", num_labels=2)).save_pretrained(tmp_path / "net")
    net = open_checkpoint(tmp_path / "net").beginning()
    assert net.new_parts == ["decoder", "final norm"]
    new = sum(value.numel() for name, value in net.model.named_parameters() if name in net.new)
    assert net.about.endswith(f"{new / 1e6:.3g} M new (decoder, final norm)")


def test_new_parameters_go_first_and_at_the_full_rate(place):
    model = open_checkpoint(place / "colour").beginning().model
    new = frozenset(name for name, _ in model.named_parameters() if name.startswith("decoder."))
    schedule = Schedule.from_epochs(100, LengthSettings(10, 4, 0, 0.256, train_new_first=0.05))
    assert (schedule.updates, schedule.new_first, schedule.peak) == (40, 2, pytest.approx(0.01))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, 0.05, 0.5, new):
        first, later = schedule.rate_of(group, 1), schedule.rate_of(group, 2)
        for name in (names[id(parameter)] for parameter in group["params"]):
            depth = int(name.split(".")[2]) + 1 if ".layers." in name else 0 if "embeddings" in name else 3
            scale = 1.0 if name in new else 0.5 ** (3 - depth)  # two blocks
            assert later == pytest.approx(schedule.rate(2) * scale)
            assert first == pytest.approx(schedule.rate(1) if name in new else 0)
    # Without these settings, the groups are those of earlier versions.
    plain = make_optimizer(model, OptimizerSettings(0.05), new).param_groups
    assert len(plain) == 2 and all("waits" not in group for group in plain)


# --- mean and deviation ---


def test_the_checkpoints_mean_stays_and_a_large_difference_is_said():
    pixels = torch.full((20, 2, 4, 4), 102, dtype=torch.uint8)  # 0.4
    pixels[:, :, ::2] = 204  # 0.8: mean 0.6, deviation 0.2
    images, said = MemoryImages(pixels, (4, 4)), []
    assert keep_mean_std(images, Processing([0.5, 0.55], [0.25, 0.2], white=255), [1, 0], said.append) == (
        [0.55, 0.5],
        [0.2, 0.25],
    )
    assert not said  # 0.1 of 0.25 is less than half a deviation
    kept = keep_mean_std(images, Processing([0.4, 0.6], [0.2, 0.2], white=255), [0, None], said.append)
    assert kept == ([0.4, 0.6], [0.2, 0.2])  # the second is measured
    assert (
        "their mean is [0.6, 0.6], std [0.2, 0.2]" in said[0] and "mean [0.4, 0.6], std [0.2, 0.2] are kept" in said[0]
    )
    assert keep_mean_std(images, Processing(), [0, 1], said.append) is None and len(said) == 1


# --- the settings that follow ---


def continued(checkpoint, *words, channels=1, before=None):
    args = parse_arguments(PretrainArguments, ["continue_images", "--model_name_or_path", str(checkpoint), *words])
    return settle(args, ImageFacts(2_000, 28, 28, channels), 1, before or {})


def test_a_tenth_of_the_rate_and_the_checkpoints_model(place):
    args, chosen, lines = continued(place / "gray")
    of_own_images = settle(PretrainArguments(own_images=True), ImageFacts(2_000, 28, 28, 1), 1, {})[0]
    assert args.base_learning_rate == pytest.approx(of_own_images.base_learning_rate / 10, rel=0.05)
    assert (args.layer_decay, args.train_new_first) == (0.75, 0.05)
    assert model_config(args) == model_config(dataclasses.replace(args, config_overrides=[]))
    assert any("a tenth for trained weights" in line for line in lines) and "base_learning_rate" in chosen
    assert continued(place / "gray", "--base_learning_rate", "1e-3")[0].base_learning_rate == 1e-3
    again, _, _ = continued(place / "gray", before=chosen)
    assert again.base_learning_rate == args.base_learning_rate


def test_new_bands_are_those_of_the_images(place):
    args, chosen, lines = continued(place / "colour", "--new_bands", "rgb:3,2,1", channels=5)
    config = model_config(args)
    assert config.num_channels == 5 and any("num_channels=5: the images have 5 bands" in line for line in lines)
    assert model_config(continued(place / "colour", "--new_bands", "mean", channels=5, before=chosen)[0]) == config
    for size in ("image_size=32", "patch_size=4"):  # another size is given before the bands are chosen
        words = ("--new_bands", "mean", "--config_overrides", size)
        assert model_config(continued(place / "colour", *words, channels=5)[0]).num_channels == 5
    with pytest.raises(ArgumentError, match="the images have 5 bands, and the checkpoint takes 3: give --new_bands"):
        continued(place / "colour", channels=5)


def test_an_encoder_gets_a_light_decoder(place, tmp_path):
    MAEModel(tiny_config(hidden_size=256)).save_pretrained(tmp_path / "encoder")
    config = model_config(continued(tmp_path / "encoder", channels=3)[0])
    # as own_images chooses: half as wide as the encoder, 4 blocks
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.hidden_size) == (128, 4, 256)
    given = continued(tmp_path / "encoder", "--config_overrides", "decoder_hidden_size=64", channels=3)[0]
    assert model_config(given).decoder_hidden_size == 64


@pytest.mark.parametrize(
    "words, message",
    [
        ("--new_bands mean", "new_bands 'mean' means nothing without model_name_or_path"),
        ("--new_bands rgb:1,2 --model_name_or_path P", "new_bands 'rgb:1,2' does not work: give mean, random, or rgb"),
        ("--new_bands mean --model_name_or_path P", "add --config_overrides num_channels=5"),
        ("--new_bands mean --model_name_or_path P --config_overrides num_channels=3", "has 3 bands already"),
        ("--model_name_or_path P --config_overrides patch_size=5", "image_size=32x32 is not a multiple of patch_size"),
        ("--train_new_first 0.1", "train_new_first 0.1 means nothing without model_name_or_path"),
        ("--train_new_first 1 --model_name_or_path P", "train_new_first 1.0 does not work: give a share in [0, 1)"),
        ("--continue_images true --model_name_or_path P", "continue_images True means nothing without own_images"),
        ("--layer_decay 0", "layer_decay 0.0 does not work: give a factor in (0, 1]"),
    ],
)
def test_settings_that_cannot_work(capsys, place, words, message):
    words = [str(place / "colour") if word == "P" else word for word in words.split()]
    with pytest.raises(SystemExit):
        parse_arguments(PretrainArguments, ["--output_dir", str(place / "run"), *words])
    assert message in capsys.readouterr().err


# --- runs ---


@pytest.fixture(scope="module")
def encoder(place):
    """The tiny encoder for the bundled gray images, without a decoder, and with another mean than theirs."""
    MAEModel.from_pretrained(place / "gray").save_pretrained(place / "encoder")
    processor = {"image_mean": [0.9], "image_std": [0.1], "num_channels": 1, "crop_fraction": 1.0, "white": 255}
    processor |= {"image_processor_type": "MAEImageProcessor", "size": {"height": 28, "width": 28}}
    (place / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor))
    return place / "encoder"


DECODER = [f"{name}={value}" for name, value in TINY_GRAY.items() if name.startswith("decoder")]
SMALL = "--max_train_samples 160 --total_batch_size 16 --report_to none --picture_epochs 0 --dataloader_num_workers 0"
SMALL = [*SMALL.split(), "--checkpoints_kept", 99, "--config_overrides", *DECODER, "decoder_intermediate_size=32"]


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory):
    """A run of 8 updates, the first two of which train the new decoder alone, and what it printed."""
    folder = tmp_path_factory.mktemp("continued") / "run"
    words = ["continue_images", *SMALL, "--model_name_or_path", encoder, "--max_train_steps", 8]
    words += ["--train_new_first", 0.25, "--eval_every_epochs", 1, "--checkpointing_steps", 1, "--output_dir", folder]
    return folder, words, run(*words)


def test_only_the_decoder_is_trained_at_first(whole, encoder):
    folder, _, output = whole
    start = {f"mae.{name}": value for name, value in load_file(encoder / "model.safetensors").items()}
    weights = [load_file(folder / f"checkpoint-{update}" / "model.safetensors") for update in (1, 2, 3)]
    assert all(torch.equal(weights[1][name], value) for name, value in start.items())
    names = [name for name in weights[0] if name.startswith("decoder.") and "positions" not in name]
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in names)
    changed = {name for name, value in start.items() if not torch.equal(weights[2][name], value)}
    assert changed == {name for name in start if "positions" not in name}
    assert f"start      {encoder}: 0.0" in output and "M new (decoder)" in output


def test_the_plan_says_why(whole, encoder):
    folder, words, output = whole
    for reason in (
        "layer_decay=0.75: ",
        "train_new_first=0.25: ",
        "image_mean=[0.9] image_std=[0.1]: the checkpoint's",
    ):
        assert f"chosen     {reason}" in output and f"# {reason}" in (folder / "recipe.yaml").read_text()
    assert "note       the images differ much from the checkpoint's: their mean is [0.2" in output
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (recipe["image_mean"], recipe["layer_decay"], recipe["train_new_first"]) == ([0.9], 0.75, 0.25)
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == [0.9]


@pytest.mark.slow
def test_a_stop_while_the_decoder_is_trained_changes_nothing(whole, tmp_path):
    folder, words, _ = whole
    manifest = read_manifest(folder / "checkpoint-1")["made_with"]
    assert manifest["train_new_first"] == 0.25 and manifest["new"] == ["decoder"]
    resume = ("--resume_from_checkpoint", folder / "checkpoint-1")
    output = run(*words[:-1], tmp_path / "again", *resume)
    assert "from update 1 of" in output
    assert_same_weights(*(load_file(path / "model.safetensors") for path in (folder, tmp_path / "again")))
    refused = run(*words[:-1], tmp_path / "other", "--train_new_first", 0.5, *resume, code=1)
    assert "train_new_first 0.25 -> 0.5" in refused


@pytest.mark.slow
def test_two_processes_train_the_same(whole, tmp_path):
    folder, words, _ = whole
    output = run(*words[:-1], tmp_path / "two", **TWO_PROCESSES)
    assert "16 = 2 processes x 8 images" in output
    for update in (2, 8):
        one, two = (
            load_file(path / f"checkpoint-{update}" / "model.safetensors") for path in (folder, tmp_path / "two")
        )
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_starting_weights_are_measured_and_judged(whole, encoder):
    folder, _, output = whole
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    baselines = next(entry for entry in log if "rank_untrained" in entry)
    assert {"knn_start", "rank_start"} <= baselines.keys()
    verdict = judge_start([entry for entry in log if "rank" in entry or "rank_untrained" in entry])
    assert f"k-NN accuracy {100 * baselines['knn_start']:.1f} % before" in verdict
    assert f"verdict    {verdict}" in output
    assert f"| against the starting weights | {verdict} |" in (folder / "README.md").read_text()
    assert f"Was it worth it? {verdict[0].upper()}{verdict[1:]}." in (folder / "report.html").read_text()


@pytest.mark.slow
def test_at_a_rate_of_0_the_weights_stay(place, tmp_path):
    """The first update of a warm-up has the rate 0."""
    words = ("--model_name_or_path", place / "gray", "--max_train_steps", 1, "--output_dir", tmp_path / "still")
    output = run("continue_images", *SMALL, *words, "--eval_every_epochs", 1, "--warmup_epochs", 1)
    assert "train_new_first=0: the checkpoint has all parts" in output and "none new" in output
    before, after = (load_file(path / "model.safetensors") for path in (place / "gray", tmp_path / "still"))
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    log = [json.loads(line) for line in (tmp_path / "still" / "history.jsonl").read_text().splitlines()]
    start, end = log[0], log[-1]
    assert (start["knn_start"], start["rank_start"]) == (end["knn"], end["rank"])
    assert "verdict    it did not help beyond chance: use the starting weights as they are" in output


@pytest.mark.parametrize("tune", ["last:1", "lora:2"])
def test_layers_that_were_fitted_to_the_images_train(place, tune):
    checkpoint = open_checkpoint(place / "colour").fitted({"num_channels": 5}, "mean")
    beginning = checkpoint.beginning()
    assert not beginning.new and beginning.about.endswith(
        "none new, fitted to the images: patch projection and prediction layer"
    )
    what = TuningSettings(tune).apply(beginning.model, changed=beginning.fitted)
    assert "the patch projection" in what and beginning.model.mae.embeddings.patch_embeddings.bias.requires_grad
    assert checkpoint.patch_layers == beginning.fitted  # trial updates train the same
    trial = Trial(
        Accelerator(), checkpoint.config, OptimizerSettings(0.05), TuningSettings(tune), checkpoint.patch_layers
    )
    trained = {
        name for model in (trial.model, beginning.model) for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {name for name, p in trial.model.named_parameters() if p.requires_grad}


@pytest.mark.slow
def test_a_run_on_images_of_other_bands(place, tmp_path):
    table = datasets.load_dataset("parquet", data_files=str(BUNDLED / "train*"), split="train").select(range(64))
    (tmp_path / "images").mkdir()
    for i, row in enumerate(table):
        gray = np.asarray(row["image"])
        np.save(tmp_path / "images" / f"{i}.npy", np.stack([gray, *(255 - gray for _ in range(4))]))
    words = ("--train_dir", tmp_path / "images", "--model_name_or_path", place / "gray", "--new_bands", "mean")
    output = run("continue_images", *SMALL[2:], *words, "--max_train_steps", 2, "--output_dir", tmp_path / "run")
    assert "num_channels=5: the images have 5 bands" in output and "the checkpoint does not say mean and dev" in output
    assert MAEModel.from_pretrained(tmp_path / "run").config.num_channels == 5
    # The recipe has new_bands and num_channels, and nothing is left to choose.
    assert "chosen" not in run(tmp_path / "run" / "recipe.yaml", "--output_dir", tmp_path / "again")
    assert_same_run(tmp_path / "run", tmp_path / "again")


# --- the verdict ---


def judged(start: float, *accuracies: float) -> str | None:
    log = log_of(*accuracies)
    return judge_start([{**log[0], "knn_start": start, "rank_start": 4.0}, *log[1:]])


def test_the_verdict_in_words():
    # On 10,000 images the standard error of 0.8 is 0.4 points, so 0.8 points are chance.
    assert judged(0.8, 0.7, 0.821) == (
        "2.1 points over what you started from (k-NN accuracy 80.0 % before, 82.1 % after)"
    )
    assert judged(0.8, 0.9, 0.807) == (
        "it did not help beyond chance: use the starting weights as they are (k-NN accuracy 80.0 % before, 80.7 % "
        "after; less than 0.8 points are chance on 10,000 images)"
    )
    assert judged(0.8, 0.75) == (
        "it did not help: use the starting weights as they are (k-NN accuracy 80.0 % before, 75.0 % after)"
    )
    assert judged(1.0, 1.0) == (
        "it did not help: use the starting weights as they are (k-NN accuracy 100.0 % before, 100.0 % after)"
    )
    assert judge_start(log_of(0.7, 0.8)) is None and judge_start([]) is None


def test_the_baseline_of_the_starting_weights(place):
    watch, config = small_growth()
    torch.manual_seed(3)
    model = MAEForPreTraining(config)
    model.save_pretrained(place / "small")
    baselines = watch.baselines(config, 1, open_checkpoint(place / "small"))
    assert watch.measure(model.mae.eval()) == {"knn": baselines["knn_start"], "rank": baselines["rank_start"]}
    assert baselines["rank_untrained"] == watch.baselines(config, 1)["rank_untrained"]
