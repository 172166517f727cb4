"""Runs with several crops of each image, over photographs of which some are decoded at reduced size."""

import pytest
from conftest import RECIPE, TINY, TWO_PROCESSES, assert_same_run, photograph, run, weights_and_history


@pytest.fixture
def repeating(tmp_path):
    (tmp_path / "photographs").mkdir()
    for i in range(30):
        image = photograph(i=i).resize((50 + 10 * i, 40 + 9 * i))
        image.save(tmp_path / "photographs" / f"{i:02}.jpg", quality=95)
    path = tmp_path / "repeats.yaml"
    lines = RECIPE.replace("max_train_samples: 160\n", "").replace("max_train_steps: 20", "max_train_steps: 9")
    fields = {**TINY, "hidden_size": 16, "num_attention_heads": 2}
    lines = "\n".join(line for line in lines.splitlines() if not line.startswith("config_overrides"))
    path.write_text(
        f"{lines}\nrepeated_augmentation: 4\ntrain_dir: {tmp_path / 'photographs'}\ncache_dir: {tmp_path / 'cache'}\n"
        f"config_overrides: {fields}\n"
    )
    return path


@pytest.mark.slow
def test_repeats_go_on_exactly_whatever_loads_the_images(tmp_path, repeating):
    output = run(repeating, "--output_dir", tmp_path / "one", "--dataloader_num_workers", 0)
    assert "from files, kept in memory once decoded" in output and "of the time waiting for images" in output
    # The same, cut into two runs with loading workers and without kept images.
    other = ("--output_dir", tmp_path / "other", "--image_cache", "off", "--dataloader_num_workers")
    output = run(repeating, *other, 2, "--checkpoints_kept", 9)
    assert ", from files\n" in output
    checkpoint = tmp_path / "other" / "checkpoint-7"
    run(repeating, *other, 1, "--resume_from_checkpoint", checkpoint)
    assert_same_run(tmp_path / "one", tmp_path / "other")
    # Fewer crops of more images would be another training.
    changed = ("--repeated_augmentation", 2, "--resume_from_checkpoint", "auto")
    assert "repeated_augmentation 4 -> 2" in run(repeating, *other, 1, *changed, code=1)
    # Two processes share what they keep.
    run(repeating, "--output_dir", tmp_path / "two", "--dataloader_num_workers", 1, **TWO_PROCESSES)
    (_, one), (_, two) = weights_and_history(tmp_path / "one"), weights_and_history(tmp_path / "two")
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=1e-5)
