"""Training little: the last blocks, or adapters by PEFT. `--tune` of both scripts."""

import copy
import importlib.util
import shutil

import peft
import pytest
import torch
from accelerate import Accelerator
from conftest import RECIPE, TINY_GRAY, TWO_PROCESSES, assert_same_weights, run, tiny_config, weights_and_history
from safetensors.torch import load_file
from test_parallel import NEEDS_RIGHT_NORMS, run_sharded

from configuration import ArgumentError, EvalArguments, PretrainArguments
from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation
from modeling_mae.training.optim import parameter_groups
from modeling_mae.training.state import save_model
from modeling_mae.training.tuning import TuningSettings


INPUTS = {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
NOISE = {"noise": torch.rand(4, 16, generator=torch.Generator().manual_seed(1))}
MORE = {
    MAEForPreTraining: NOISE,
    EvalNet: {"labels": torch.arange(4) % 3},
    MAEForSemanticSegmentation: {"labels": (torch.arange(4 * 32 * 32) % 3).view(4, 32, 32)},
}
KINDS = [
    (MAEForPreTraining, {}),
    (MAEForPreTraining, {"decoder_type": "cross", "decoder_reads": "blocks"}),
    (EvalNet, {"head_norm": "batch"}),
    (EvalNet, {"pooling": "attention", "head_norm": "layer"}),
    (MAEForSemanticSegmentation, {"segmentation_head": "multiscale"}),
]
# One block of TINY_GRAY: attention 4 x 16 x 16 + 64, MLP 2 x 16 x 32 + 48, two norms of 32.
BLOCK, NORM = 1024 + 64 + 1024 + 48 + 64, 32
# In: 16 x 16 + 16. The mask token: 16. A block, a norm. Out, to the 49 pixels of a patch: 16 x 49 + 49.
DECODER = 272 + 16 + BLOCK + NORM + 833


def tuned(kind, tune: str, **changes):
    """(a model, the same with what `tune` puts into it)."""
    torch.manual_seed(0)
    base = kind(tiny_config(num_labels=3, head_initializer_range=0.5, **changes))
    if kind is not MAEForPreTraining:
        base.freeze(2)
    model = copy.deepcopy(base)
    TuningSettings(tune).apply(model, "owner/name")
    return base, model


def learned(model, kind):
    """A few updates, so that all that trains has changed."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    model.train()
    for _ in range(3):
        model(**INPUTS, **MORE[kind]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def outputs(model, kind) -> torch.Tensor:
    return model(**INPUTS, **(NOISE if kind is MAEForPreTraining else {})).logits


@pytest.mark.parametrize(
    ("tune", "trained", "added"),
    [
        ("last:1", BLOCK + NORM + DECODER, 0),
        ("lora", 2 * 8 * (16 + 48) + DECODER, 2 * 8 * (16 + 48)),
        ("lora:4+last:1", 4 * (16 + 48) + 2 * NORM + BLOCK + NORM + DECODER, 4 * (16 + 48)),
    ],
)
def test_parameters_are_those_counted_by_hand(tune, trained, added):
    model = MAEForPreTraining(MAEConfig(**TINY_GRAY))
    whole = sum(p.numel() for p in model.parameters())
    what = TuningSettings(tune).apply(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert what.endswith(f": {trained:,} of {whole + added:,} parameters")


def test_the_names_of_what_trains():
    _, model = tuned(MAEForPreTraining, "lora:4+last:1")
    names = {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("decoder.")}
    block = {name for name, _ in model.named_parameters() if name.startswith("mae.layers.1.")}
    first = "mae.layers.0."
    norms = {f"{first}norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    adapters = {f"{first}attention.qkv.lora_{half}.default.weight" for half in "AB"}
    assert names == block | norms | adapters | {"mae.layernorm.weight", "mae.layernorm.bias"}
    assert not model.decoder.positions.table.requires_grad  # what was frozen stays frozen
    model = MAEForPreTraining(tiny_config())
    new = frozenset({"mae.layernorm.weight", "decoder.norm.weight", "mae.embeddings.patch_embeddings.weight"})
    assert new <= set(dict(model.named_parameters()))
    what = TuningSettings("lora").apply(model, changed=new)  # what the checkpoint did not have trains too
    assert what.startswith("adapters of rank 8, the patch projection and decoder: ")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert new <= trained and "mae.embeddings.cls_token" not in trained
    assert model.peft_config["default"].modules_to_save == [
        "decoder",
        "mae.embeddings.patch_embeddings",
        "mae.layernorm",
    ]
    _, model = tuned(MAEForPreTraining, "all")
    assert model.mae.layers[0].attention.qkv.weight.requires_grad


def test_the_optimizer_knows_the_block_of_an_adapter():
    _, model = tuned(EvalNet, "lora")
    groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    wanted = {
        f"mae.layers.{i}.attention.qkv.lora_{half}.default.weight": 0.5 ** (2 - i) for i in (0, 1) for half in "AB"
    }
    wanted |= {"head.weight": 1.0}
    names = dict(model.named_parameters())
    assert {name: found.pop(id(names[name])) for name in wanted} == {name: (s, 0.1) for name, s in wanted.items()}
    assert all(id(p) not in found for p in names.values() if not p.requires_grad)
    assert found == {id(names["head.bias"]): (1.0, 0.0)}


@pytest.mark.parametrize("tune", ["lora:4", "lora:4+last:1"])
@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_the_saved_model_needs_no_peft_and_the_adapter_gives_it_from_the_start(tmp_path, kind, changes, tune):
    base, model = tuned(kind, tune, **changes)
    learned(model, kind)
    expected, before = outputs(model, kind), outputs(base.eval(), kind)
    assert (expected - before).abs().max() > 1e-3
    for _ in range(2):  # a second time over the first
        save_model(Accelerator(cpu=True), model, tmp_path)
    saved, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(outputs(saved.eval(), kind), expected, atol=1e-6, rtol=1e-6)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(outputs(loaded, kind), expected, atol=1e-6, rtol=1e-6)
    assert loaded.active_peft_config.base_model_name_or_path == "owner/name"
    torch.testing.assert_close(outputs(loaded.merge_and_unload(), kind), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [EvalNet, MAEForSemanticSegmentation])
@pytest.mark.parametrize("saved", [None, ["head", "head_norm", "segmenter"]])
def test_the_statistics_of_a_norm_change_only_if_the_adapters_file_has_them(kind, saved):
    torch.manual_seed(0)
    model = kind(tiny_config(num_labels=3, head_norm="batch"))
    adapters = peft.LoraConfig(target_modules=["qkv"], modules_to_save=saved)
    model = learned(peft.get_peft_model(model, adapters), kind)
    moved = [name for name, mean in model.named_buffers() if name.endswith("running_mean") and mean.any()]
    assert bool(moved) == bool(saved)
    assert all(".modules_to_save." in name for name in moved)


# --- the option ---


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """The folder of a checkpoint to start from, with 2 blocks of 16."""
    folder = tmp_path_factory.mktemp("begin")
    torch.manual_seed(1)
    MAEForPreTraining(MAEConfig(**TINY_GRAY)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("some", "give all, last:2 (blocks), lora, lora:16 (rank) or lora:8+last:1"),
        ("last", "give all"),
        ("last:0", "give all"),
        ("lora:0", "give all"),
        ("lora+", "give all"),
        ("+last:1", "give all"),
        ("loralast:1", "give all"),
        ("last:1+lora", "give all"),
        ("last:2", "the encoder has 2 blocks: give last:1 to last:1, or all"),
        ("lora+last:2", "the encoder has 2 blocks: give last:1 to last:1, or all"),
        ("lora:17", "rank 17 is above the width 16: give a lower one"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line(begin, tune, message):
    options = [PretrainArguments(model_name_or_path=str(begin), tune=tune)]
    if tune != "last:2":
        options.append(EvalArguments(model_name_or_path=str(begin), n_partial=[2], tune=tune))
    for each in options:
        with pytest.raises(ArgumentError) as error:
            each.check()
        assert str(error.value).startswith(f"tune {tune!r}") and message in str(error.value)
        assert "\n" not in str(error.value)


def test_tuning_needs_weights_to_start_from_and_adapters_need_peft(begin, monkeypatch):
    with pytest.raises(ArgumentError, match="tune 'lora' needs weights to start from: give --model_name_or_path"):
        PretrainArguments(tune="lora").check()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "peft" else find(name))
    with pytest.raises(ArgumentError, match=r"tune 'lora' needs PEFT.*: pip install 'modeling-mae\[peft\]'"):
        PretrainArguments(model_name_or_path=str(begin), tune="lora").check()
    PretrainArguments(model_name_or_path=str(begin), tune="last:1").check()


def test_in_an_evaluation_last_is_n_partial_and_adapters_are_end_to_end(begin):
    place = {"model_name_or_path": str(begin)}
    last = EvalArguments(**place, tune="last:1")
    last.check()
    assert (last.n_partial, last.tune) == ([1.0], "all")
    with pytest.raises(ArgumentError, match="tune 'last:1' and n_partial 1 both say which blocks train: give one"):
        EvalArguments(**place, tune="last:1", n_partial=[1]).check()
    for n_partial in ([0], [1], None):
        with pytest.raises(ArgumentError, match="is for end-to-end tuning: give --n_partial 2 instead of"):
            EvalArguments(**place, tune="lora", n_partial=n_partial).check()
    for idle in ({"do_train": False, "n_partial": [2]}, {"from_scratch": True}):
        with pytest.raises(
            ArgumentError, match="tune 'lora' is for a training that begins with a checkpoint: give --n_"
        ):
            EvalArguments(**place, tune="lora", **idle).check()
    both = EvalArguments(**place, tune="lora", n_partial=[2], from_scratch=True)
    both.check()
    assert [training.recipe.tune for training in both.trainings()] == ["lora", "all"]  # no encoder to keep


# --- runs ---


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    """(the words of a pre-training, its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.yaml").write_text(RECIPE)
    words = (folder / "small.yaml", "--model_name_or_path", begin, "--tune", "lora:4+last:1")
    words = (*words, "--config_overrides", "mask_ratio=0.75")
    return words, folder / "run", run(*words, "--output_dir", folder / "run")


def test_a_pretraining_goes_on_exactly_and_says_what_trains(whole, tmp_path, begin):
    words, folder, output = whole
    what = f"adapters of rank 4, the last block, the norms and decoder: {256 + 96 + BLOCK + DECODER:,} of "
    assert what in next(line for line in output.splitlines() if line.startswith("model "))
    assert f"# tune=lora:4+last:1: trains {what}" in (folder / "recipe.yaml").read_text()
    assert f"trained: {what}" in (folder / "README.md").read_text()
    run(*words, "--output_dir", tmp_path, "--resume_from_checkpoint", folder / "checkpoint-14")
    (one, history), (on, later) = (weights_and_history(path) for path in (folder, tmp_path))
    assert_same_weights(one, on)
    assert_same_weights(*(load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder, tmp_path)))
    assert later == [entry for entry in history if entry["step"] > 14]
    before = MAEForPreTraining.from_pretrained(begin).state_dict()
    same = {name for name, value in before.items() if torch.equal(value, one[name])}
    parts = "attention.qkv.bias attention.proj.weight attention.proj.bias mlp.fc1.weight mlp.fc1.bias".split()
    frozen = {f"mae.layers.0.{part}" for part in (*parts, "mlp.fc2.weight", "mlp.fc2.bias")}
    assert same == frozen | {name for name in before if "positions" in name or name.startswith("mae.embeddings.")}


def test_a_run_with_another_tuning_does_not_go_on_and_says_so(whole, tmp_path):
    words, folder, _ = whole
    resume = ("--resume_from_checkpoint", folder / "checkpoint-14", "--output_dir", tmp_path)
    for tune in ("last:1", "lora:2"):
        output = run(*words, "--tune", tune, *resume, code=1)
        assert f"made with other settings (tune lora:4+last:1 -> {tune})" in output


@pytest.mark.slow
def test_two_processes_train_the_same(whole, tmp_path):
    words, folder, _ = whole
    run(*words, "--output_dir", tmp_path, **TWO_PROCESSES)
    assert_close_weights(folder, tmp_path)


@pytest.mark.slow
@NEEDS_RIGHT_NORMS
def test_sharded_processes_train_the_same(whole, tmp_path):
    words, folder, _ = whole
    assert "(FSDP)" in run_sharded("run_pretrain.py", *words, "--output_dir", tmp_path)
    assert_close_weights(folder, tmp_path)


def assert_close_weights(*folders):
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = (load_file(folder / file) for folder in folders)
        torch.testing.assert_close(other, one, atol=2e-4, rtol=1e-3)


def test_a_classifier_with_adapters_goes_on_exactly(tmp_path, begin):
    words = ("--model_name_or_path", begin, "--n_partial", 2, "--tune", "lora:4", "--report_to", "none", "--mixup", 0)
    words = (*words, "--max_train_samples", 64, "--max_eval_samples", 32, "--max_train_steps", 8, "--cutmix", 0)
    words = (
        *words,
        "--total_batch_size",
        16,
        "--per_device_train_batch_size",
        8,
        "--config_overrides",
        "head_norm=batch",
    )
    words = (*words, "--checkpointing_steps", 4, "--warmup_epochs", 1, "--base_learning_rate", 0.1)
    output = run(*words, "--output_dir", tmp_path / "one", script="run_eval.py")
    what = f"adapters of rank 4 and head: {2 * 256 + 170:,} of "
    assert f"n_partial-2: {what}" in output and "fine-tuned blocks: 2, by lora:4" in output
    assert f"# tune=lora:4: trains {what}" in (tmp_path / "one" / "recipe.yaml").read_text()
    assert f"Trained end to end, by {what}" in (tmp_path / "one" / "README.md").read_text()
    # as it was when it had done half of its updates
    shutil.copytree(
        tmp_path / "one", tmp_path / "on", ignore=shutil.ignore_patterns("checkpoint-8", "eval_results.json")
    )
    go_on = ("--output_dir", tmp_path / "on", "--resume_from_checkpoint", "auto")
    assert "from update 4 of" in run(*words, *go_on, script="run_eval.py")
    one, on = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "on"))
    assert_same_weights(one, on)
    base = EvalNet.from_pretrained(begin, config=MAEConfig.from_pretrained(tmp_path / "one"))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "one" / "last" / "adapter").merge_and_unload()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(one[name], value, atol=1e-6, rtol=1e-6, msg=name)
