"""What follows from the images where nothing is given: every expected number is counted by hand from the rules."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from configuration import ArgumentError, PretrainArguments, model_config, model_settings, parse_arguments
from configuration.arguments import PretrainRecipe
from configuration.decide import length_of_earlier_run, with_length
from configuration.own_images import OPTIONS, settle
from modeling_mae.data.find.facts import ImageFacts, image_facts
from modeling_mae.data.find.sources import Source
from modeling_mae.data.read.faults import BadImage


def settled(count, height, width, channels=3, processes=1, before=None, **given):
    args = PretrainArguments(own_images=True, **{"config_name": "vit_small", **given})
    facts = {"count": count, "height": height, "width": width, "channels": channels}
    return settle(args, ImageFacts(**facts), processes, before or {})


# (images, height, width): image size, patch, batch, epochs, smallest crop
BY_HAND = {
    # 2000 / 20 = 100 -> 64 images; 32 x 32 / 14 x 14 is 2.3 pixels a patch; 1024 / (32 x 32) is above 0.6
    (2_000, 32, 32): (32, 2, 64, 2_000, 0.6),
    # 5000 / 20 = 250 -> 128; the paper's size; 20 million / 5000 is above 2000
    (5_000, 375, 500): (224, 16, 128, 2_000, 0.2),
    # 100000 / 20 = 5000, above 1024; 96 / 14 = 6.9; 20 million / 100000 = 200
    (100_000, 96, 96): (96, 8, 1024, 200, 0.2),
    # 17 / 20 is below the 8 that an update has at least; 1024 / (100 x 90) = 0.11; 90 / 14 = 6.4 -> 8, 11 x 8 = 88
    (17, 100, 90): (88, 8, 8, 2_000, 0.2),
    # 30000 / 20 = 1500, above 1024; 20 million / 30000 = 666 -> 650; 64 / 14 = 4.6; 1024 / 4096 = 0.25
    (30_000, 64, 64): (64, 4, 1024, 650, 0.25),
    # longer than twice its height: it keeps its shape; sqrt(64 x 512) = 181 -> 12.9 pixels a patch
    (1_000, 64, 512): ([64, 512], 16, 32, 2_000, 0.2),
    # smaller than the smallest patches
    (3, 3, 3): (4, 2, 2, 2_000, 0.6),
}


@pytest.mark.parametrize("images", BY_HAND)
def test_settings_follow_from_the_images(images):
    args, chosen, lines = settled(*images)
    config = model_config(args)
    found = (config.image_size, config.patch_size, args.total_batch_size, args.num_train_epochs, args.crop_scale[0])
    assert found == BY_HAND[images]
    assert args.warmup_epochs == pytest.approx(args.num_train_epochs / 20) and args.crop_scale[1] == 1
    assert config.num_channels == 3 and config.hidden_size == 384
    # half of 384, in heads of 64
    decoder = (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
    assert decoder == (192, 4, 3) and config.decoder_intermediate_size == 768
    # every setting is named once, in a line with a reason
    named, reasons = zip(*(line.split(": ", 1) for line in lines), strict=True)
    assert sorted(word.split("=")[0] for word in " ".join(named).split() if "=" in word) == sorted(chosen)
    assert all(reasons)


@pytest.mark.parametrize("batch, rate", [(4096, 1.5e-4), (1024, 3e-4), (64, 1.2e-3), (256, 6e-4)])
def test_the_rate_grows_with_the_square_root_of_the_batch(batch, rate):
    args, _, _ = settled(100_000, 224, 224, total_batch_size=batch)
    assert args.base_learning_rate == pytest.approx(rate)  # 1.5e-4 x sqrt(4096 / batch)


@pytest.mark.parametrize("processes, total", [(1, 64), (2, 64), (3, 96), (4, 64), (6, 96), (8, 64), (100, 100)])
def test_every_process_has_the_same_number_of_images(processes, total):
    args, _, _ = settled(2_000, 32, 32, processes=processes)  # 100 at most: 3 x 32, 6 x 16
    assert args.total_batch_size == total
    assert args.total_batch_size % (processes * args.per_device_train_batch_size) == 0


def test_what_is_given_wins_and_the_rest_fits_it():
    given = {"total_batch_size": 50, "num_train_epochs": 30, "crop_scale": [0.5, 0.9], "base_learning_rate": 1.0}
    args, chosen, _ = settled(2_000, 375, 500, **given, config_overrides=["patch_size=10", "decoder_hidden_size=96"])
    assert {name: getattr(args, name) for name in given} == given
    config = model_config(args)
    assert (config.image_size, config.patch_size) == (220, 10)  # 22 patches of 10 pixels are the most below 224
    assert (config.decoder_hidden_size, config.decoder_num_attention_heads) == (96, 1)
    assert args.warmup_epochs == 1.5 and args.per_device_train_batch_size == 50
    assert not set(chosen) & {*given, "patch_size", "decoder_hidden_size"}
    assert model_config(settled(2_000, 30, 30, config_overrides=["image_size=64"])[0]).patch_size == 4  # 64 / 14 = 4.6
    pair = model_config(settled(2_000, 100, 100, config_overrides=["patch_size=[10, 20]"])[0])
    assert (pair.image_size, pair.patch_size) == (100, [10, 20])
    # 62 updates, 31 an epoch
    steps, _, _ = settled(2_000, 32, 32, max_train_steps=62)
    assert steps.num_train_epochs == 2


def test_a_default_that_is_given_wins_too():
    args = parse_arguments(PretrainArguments, ["own_images", "--total_batch_size", "4096"])
    assert settle(args, ImageFacts(10**6, 32, 32, 3), 1, {})[0].total_batch_size == 4096


def test_a_checkpoints_model_stays_as_it_is(tmp_path):
    before, _, _ = settled(2_000, 28, 28, 1)
    model_config(before).save_pretrained(tmp_path)
    args, chosen, _ = settled(500, 375, 500, config_name=None, model_name_or_path=str(tmp_path))
    assert model_settings(model_config(args)) == model_settings(model_config(before))
    assert set(chosen) == set(OPTIONS)


def test_going_on_takes_what_was_chosen_before():
    first, chosen, _ = settled(2_000, 32, 32)
    # Other images or processes would lead to other settings. The checkpoint is what refuses other images.
    again, same, lines = settled(90_000, 64, 64, processes=2, before=chosen)
    assert "as when the run began" in lines[0]
    assert again.deciding_weights() == first.deciding_weights() and model_config(again) == model_config(first)
    assert (first.per_device_train_batch_size, again.per_device_train_batch_size) == (64, 32)
    assert {**same, "per_device_train_batch_size": 64} == chosen
    changed, kept, _ = settled(2_000, 32, 32, before=chosen, num_train_epochs=2_500)
    assert changed.num_train_epochs == 2_500 and "num_train_epochs" not in kept
    assert changed.warmup_epochs == first.warmup_epochs  # so that a longer run is not another one


def test_arguments_of_a_run_leave_nothing_open():
    args, _, _ = settled(2_000, 32, 32)
    assert all(getattr(args, name) is not None for name in OPTIONS)
    again, chosen, lines = settle(args, ImageFacts(9, 9, 9, 1), 1, {})
    assert not chosen and not lines and again == args


def test_a_run_of_some_hours_keeps_its_length_and_the_share_of_its_warm_up():
    args = with_length(PretrainRecipe(num_train_epochs=800, warmup_epochs=40, max_hours=2), 20)
    assert (args.num_train_epochs, args.warmup_epochs) == (20, 1)
    chosen = {"num_train_epochs": 20, "warmup_epochs": 1}
    # What was chosen once holds; a shorter run is asked for by giving it.
    for given, epochs in ((800, 20), (5, 5)):
        again = length_of_earlier_run(PretrainArguments(num_train_epochs=given, max_hours=2), chosen)
        assert (again.num_train_epochs, again.warmup_epochs) == (epochs, 1)
    own_images = PretrainArguments(own_images=True, max_hours=2)
    assert length_of_earlier_run(own_images, chosen).num_train_epochs == 20
    assert length_of_earlier_run(PretrainArguments(num_train_epochs=30), chosen).num_train_epochs == 30
    assert length_of_earlier_run(PretrainArguments(max_hours=2), {}).num_train_epochs == 800


def test_what_cannot_work_is_refused_in_one_line():
    with pytest.raises(ArgumentError, match="patch_size"):
        settled(2_000, 32, 32, config_overrides=["image_size=33", "patch_size=8"])
    for wrong in ("patch_size=abc", "image_size=[32, 32, 3]", "hidden_size=1.5", "decoder_hidden_size=0"):
        with pytest.raises(ArgumentError, match=wrong.split("=")[0]):
            settled(2_000, 32, 32, config_overrides=[wrong])
    with pytest.raises(ArgumentError, match="crop_scale"):
        settled(2_000, 32, 32, crop_scale=[0.5])


def encoded(mode: str, width: int, height: int, kind="PNG", **options) -> dict:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def array(*shape: int) -> dict:
    file = io.BytesIO()
    np.save(file, np.ones(shape, np.uint16))
    return {"bytes": file.getvalue(), "path": None}


def facts(*cells: dict, **options):
    rows = datasets.Dataset.from_dict(
        {"image": list(cells)}, datasets.Features({"image": datasets.Image(decode=False)})
    )
    return image_facts(Source(rows, "image", None, "pictures"), **options)


def shape_of(found) -> tuple[int, int, int, int]:
    return found.count, found.height, found.width, found.channels


def test_facts_of_pictures():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    cells = [encoded("RGB", 50, 40), encoded("RGB", 30, 60, "JPEG", exif=exif), encoded("RGBA", 80, 20)]
    # widths 50, 60, 80; heights 40, 30, 20: the middle ones
    assert shape_of(facts(*cells)) == (3, 30, 60, 3)
    gray = [encoded("L", 9, 8), encoded("I;16", 9, 8), encoded("1", 9, 8), encoded("LA", 9, 8)]
    assert shape_of(facts(*gray)) == (4, 8, 9, 1)
    assert shape_of(facts(*gray, encoded("P", 9, 8))) == (5, 8, 9, 3)  # one with colours
    assert shape_of(facts({"bytes": b"text", "path": None}, encoded("L", 9, 8))) == (2, 8, 9, 1)
    with pytest.raises(BadImage, match="not a readable image"):
        facts({"bytes": b"text", "path": None})


def test_facts_of_arrays():
    assert shape_of(facts(array(5, 40, 30), array(5, 40, 30), array(40, 30, 5))) == (3, 40, 30, 5)
    assert shape_of(facts(array(40, 30))) == (1, 40, 30, 1)
    assert facts(array(5, 40, 30), bands=[3, 1]).channels == 2
