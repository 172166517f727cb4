"""EvalNet: what is frozen, what the head sees, what is loaded."""

import logging

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from transformers import AutoModelForImageClassification

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining, MAEModel
from modeling_mae.training.optim import OptimizerSettings, make_optimizer


DEPTH = 3
CHANGES = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": DEPTH}
CHANGES |= {"num_labels": 5, "head_initializer_range": 0.01}
IMAGES, LABELS = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5

# Written down by hand from the paper's Figure 9 and the definition of each value.
ATTENTION = [
    "norm1.weight",
    "norm1.bias",
    *(f"attention.{n}.{k}" for n in ("qkv", "proj") for k in ("weight", "bias")),
]
MLP = ["norm2.weight", "norm2.bias", *(f"mlp.{n}.{k}" for n in ("fc1", "fc2") for k in ("weight", "bias"))]
HEAD = {"head.weight", "head.bias"}
NORM = {"mae.layernorm.weight", "mae.layernorm.bias"}
EMBEDDINGS = {f"mae.embeddings.{n}" for n in ("cls_token", "positions.table", "patch_embeddings.weight")}
EMBEDDINGS |= {"mae.embeddings.patch_embeddings.bias"}


def block(i, parts):
    return {f"mae.layers.{i}.{part}" for part in parts}


TUNED = {
    0: HEAD,
    0.5: HEAD | NORM | block(2, MLP),
    1: HEAD | NORM | block(2, ATTENTION + MLP),
    2: HEAD | NORM | block(2, ATTENTION + MLP) | block(1, ATTENTION + MLP),
    3: HEAD | NORM | EMBEDDINGS | {n for i in range(DEPTH) for n in block(i, ATTENTION + MLP)},
}


def net(**overrides):
    torch.manual_seed(1)
    return EvalNet(tiny_config(**{**CHANGES, **overrides}))


@pytest.mark.parametrize("head_norm", ["none", "batch"])
@pytest.mark.parametrize("n_partial", TUNED)
def test_exactly_the_tuned_part_changes(n_partial, head_norm):
    model = net(head_norm=head_norm, drop_path_rate=0.3)
    model.freeze(n_partial)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerSettings(0.1, 0.9, 0.999, 1.0, "adamw"))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    torch.manual_seed(0)
    for _ in range(3):
        model(IMAGES, labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {f"head_norm.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == TUNED[n_partial] | (statistics if head_norm == "batch" else set())


def test_norm_in_place_of_the_final_one_is_tuned_with_the_head():
    model = net(head_norm="layer").freeze(0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == HEAD | {"head_norm.weight", "head_norm.bias"}
    assert not any(name.startswith("mae.layernorm") for name in model.state_dict())


@pytest.mark.parametrize("n_partial", TUNED)
def test_frozen_parts_stay_in_eval_mode_and_out_of_the_graph(n_partial):
    model = net(drop_path_rate=0.3)
    model.freeze(n_partial)
    model.eval().train()
    for name, module in list(model.named_modules())[1:]:
        frozen = [f"{name}.{n}" not in TUNED[n_partial] for n, _ in module.named_parameters()]
        if frozen and all(frozen):
            assert not module.training, name
        if frozen and not any(frozen):
            assert module.training, name
    hidden = model(IMAGES, output_hidden_states=True).hidden_states  # embeddings, then one a block
    first = {0: DEPTH, 0.5: DEPTH - 1, 1: DEPTH - 1, 2: DEPTH - 2, 3: -1}[n_partial]
    assert [state.requires_grad for state in hidden[: DEPTH + 1]] == [i > first for i in range(DEPTH + 1)]
    assert not model.eval().training and not any(module.training for module in model.modules())


def test_drop_path_of_a_frozen_sub_block_is_off():
    model = net(drop_path_rate=0.9).freeze(0.5).train()
    last = model.mae.layers[-1]
    assert not last.drop_path1.training and last.drop_path2.training


def test_other_values_of_n_partial_are_refused():
    for value in (-1, 0.25, 1.5, 4, True):
        with pytest.raises(ValueError, match=r"not one of 0 .* 0.5 .* 1 ... 3"):
            net().freeze(value)


@pytest.mark.parametrize("pooling", ["cls", "mean", "flatten"])
@pytest.mark.parametrize("head_norm", ["none", "batch", "layer"])
def test_logits_by_hand(pooling, head_norm):
    if (pooling, head_norm) == ("flatten", "layer"):
        with pytest.raises(ValueError, match="head_norm='layer'"):
            net(pooling=pooling, head_norm=head_norm)
        return
    model = net(pooling=pooling, head_norm=head_norm).eval()
    tokens = model.mae(IMAGES, output_hidden_states=True).hidden_states[-1]  # after the last block, before the norm
    assert tokens.shape == (8, 17, 16)
    if head_norm != "layer":
        tokens = F.layer_norm(tokens, (16,), eps=1e-6)  # weights are one and zero at the start
    pooled = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(1), "flatten": tokens[:, 1:].reshape(8, -1)}[pooling]
    if head_norm == "layer":
        pooled = F.layer_norm(pooled, (16,), eps=1e-6)
    elif head_norm == "batch":
        model.train()  # statistics of the batch
        pooled = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(model(IMAGES).logits, pooled @ model.head.weight.T + model.head.bias)


def test_loss_is_cross_entropy_smoothed_only_while_training():
    model = net(label_smoothing=0.1).eval()
    logits = model(IMAGES).logits.double()
    plain = -logits.log_softmax(-1)[torch.arange(8), LABELS].mean()
    target = F.one_hot(LABELS, 5) * 0.9 + 0.1 / 5
    smoothed = -(target * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(model(IMAGES, labels=LABELS).loss.double(), plain, rtol=1e-5, atol=1e-6)
    model.train()
    torch.testing.assert_close(model(IMAGES, labels=LABELS).loss.double(), smoothed, rtol=1e-5, atol=1e-6)
    mixed = torch.rand(8, 5).softmax(-1)
    expected = -((mixed * 0.9 + 0.1 / 5) * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(model(IMAGES, labels=mixed).loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert model.bfloat16()(IMAGES.bfloat16(), labels=LABELS).loss.dtype == torch.float32


def test_drop_path_grows_linearly_and_keeps_the_mean():
    model = net(drop_path_rate=0.4)
    rates = [(layer.drop_path1.rate, layer.drop_path2.rate) for layer in model.mae.layers]
    assert rates == [(0, 0), (0.2, 0.2), (0.4, 0.4)]
    path = model.mae.layers[-1].drop_path1.train()
    torch.manual_seed(0)
    ones = path(torch.ones(20000, 2, 1))
    assert torch.equal(ones[:, 0], ones[:, 1]) and set(ones.unique().tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    assert ones.mean().item() == pytest.approx(1, abs=0.03)  # deviation of the mean 0.006
    assert torch.equal(path.eval()(ones), ones)


def test_loads_the_encoder_of_any_checkpoint(tmp_path):
    torch.manual_seed(0)
    pretrained = MAEForPreTraining(tiny_config(**CHANGES))
    pretrained.save_pretrained(tmp_path / "mae")
    pretrained.mae.save_pretrained(tmp_path / "encoder")
    for source in ("mae", "encoder"):
        model, info = EvalNet.from_pretrained(
            tmp_path / source, num_labels=7, head_norm="batch", output_loading_info=True
        )
        assert {n for n in info["missing_keys"] if "head_norm" not in n} == HEAD and not info["unexpected_keys"]
        for name, value in pretrained.mae.state_dict().items():
            assert torch.equal(model.mae.state_dict()[name], value), name
        assert model.head.weight.shape == (7, 16) and 0.005 < model.head.weight.std() < 0.015
        assert torch.equal(model.head_norm.running_var, torch.ones(16)) and not model.head.bias.any()
    model.config.id2label = {i: f"class {i}" for i in range(7)}
    model.train()(IMAGES)  # moves the statistics of the norm
    model.save_pretrained(tmp_path / "eval")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "eval")
    assert isinstance(again, EvalNet) and again.config.id2label[3] == "class 3" and again.config.head_norm == "batch"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    encoder = MAEModel.from_pretrained(tmp_path / "eval")
    assert torch.equal(encoder(IMAGES).last_hidden_state, pretrained.mae.eval()(IMAGES).last_hidden_state)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_another_image_size_interpolates_the_positions(tmp_path, positions):
    torch.manual_seed(0)
    pretrained = MAEForPreTraining(tiny_config(**CHANGES, position_embedding=positions))
    pretrained.save_pretrained(tmp_path)
    table = pretrained.mae.embeddings.positions.table.detach()
    expected = F.interpolate(table[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=(6, 8), mode="bicubic")
    expected = torch.cat([table[:, :1], expected.flatten(2).transpose(1, 2)], 1)
    config = MAEConfig.from_pretrained(tmp_path, image_size=[24, 32])
    for model in (
        EvalNet.from_pretrained(tmp_path, image_size=(24, 32)),
        EvalNet.from_pretrained(tmp_path, config=config),
        AutoModelForImageClassification.from_pretrained(tmp_path, image_size=[24, 32]),
    ):
        assert model.config.grid == (6, 8)
        torch.testing.assert_close(model.mae.embeddings.positions.table.detach(), expected)
        assert model(torch.randn(2, 3, 24, 32)).logits.shape == (2, 5)
    assert config.image_size == [24, 32]
    with pytest.raises(ValueError, match="not a multiple"):
        EvalNet.from_pretrained(tmp_path, image_size=18)
    flat = EvalNet(tiny_config(**CHANGES, pooling="flatten"))
    with pytest.raises(ValueError, match="flatten"):
        flat.set_image_size(32)
    with pytest.raises(ValueError, match="flatten"):
        flat(torch.randn(2, 3, 32, 32))
    assert flat(IMAGES).logits.shape == (8, 5)


def test_transformers_trainer_trains_it(tmp_path):
    from transformers import Trainer, TrainingArguments

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return {"pixel_values": IMAGES[i], "labels": LABELS[i]}

    options = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "save_steps": 2}
    model = net().freeze(0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, TrainingArguments(str(tmp_path), **options), train_dataset=Images())
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == TUNED[0.5]
    assert trainer.evaluate(Images())["eval_loss"] > 0
    again = EvalNet.from_pretrained(tmp_path / "checkpoint-2").eval()
    torch.testing.assert_close(again(IMAGES).logits, model.eval()(IMAGES).logits)


def test_a_new_classifier_is_told_in_one_line_and_more_in_a_table(tmp_path, monkeypatch, caplog):
    MAEForPreTraining(tiny_config()).save_pretrained(tmp_path / "mae")
    logger, records = logging.getLogger("transformers.modeling_utils"), []
    caplog.set_level(logging.WARNING, "transformers")  # an Accelerator that another test has made silences it
    monkeypatch.setattr(logger, "callHandlers", lambda record: records.append(record.getMessage()))

    def said(folder, **options) -> list[str]:
        records.clear()
        EvalNet.from_pretrained(tmp_path / folder, **options)
        return list(records)

    new = ["EvalNet: a new classifier with 7 outputs, yet to be trained"]
    assert said("mae", num_labels=7) == said("mae", num_labels=7, head_norm="batch", pooling="attention") == new
    (table,) = said("mae", num_labels=7, num_hidden_layers=3)
    assert "LOAD REPORT" in table and "layers.2" in table
    EvalNet(tiny_config(num_labels=7)).save_pretrained(tmp_path / "classifier")
    assert said("classifier") == []
    (table,) = said("classifier", num_labels=3, ignore_mismatched_sizes=True)
    assert "MISMATCH" in table
    with pytest.raises(RuntimeError):
        said("classifier", num_labels=3)
    assert "MISMATCH" in records[-1] and not logger.filters
