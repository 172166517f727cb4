"""pooling='attention': what the queries see, what is trained, saved, loaded and exported."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from configuration.memory import encoder_parameters
from modeling_mae import EvalNet, MAEBackbone, MAEForPreTraining, MAEModel
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.commands.convert import convert
from modeling_mae.data.serve.processor import image_processor
from modeling_mae.errors import UserError
from modeling_mae.evaluation.features import frozen_encoder
from modeling_mae.modeling_mae import MAEAttentionPooling
from modeling_mae.training.optim import OptimizerSettings, make_optimizer, parameter_groups


WIDTH = 32
ATTENTION = {"pooling": "attention", "num_pooling_queries": 4, "num_pooling_heads": 2}
POOLER = {"mae.pooler.queries", "mae.pooler.value.weight", "mae.pooler.value.bias"}
HEAD = {"head.weight", "head.bias"}
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


def config(**changes):
    return tiny_config(**{**ATTENTION, "num_labels": 3, "head_initializer_range": 0.01, **changes})


def pooler(queries: int, heads: int) -> MAEAttentionPooling:
    """With large random weights, so that the attention is far from uniform."""
    torch.manual_seed(queries + heads)
    module = MAEAttentionPooling(config(num_pooling_queries=queries, num_pooling_heads=heads)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=1.0)
    return module


TOKENS = torch.randn(3, 7, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SHAPES = [(1, 1), (1, 4), (4, 1), (8, 4), (32, 1)]


@torch.no_grad()
@pytest.mark.parametrize(("queries", "heads"), SHAPES)
def test_pooling_by_hand(queries, heads):
    module = pooler(queries, heads)
    size, part = WIDTH // heads, WIDTH // heads // queries
    expected = torch.zeros(3, WIDTH, dtype=torch.float64)
    for image in range(3):
        values = [module.value.weight @ token + module.value.bias for token in TOKENS[image]]
        for head in range(heads):
            for query in range(queries):
                question = module.queries[query, head * size : (head + 1) * size]
                scores = [(question @ token[head * size : (head + 1) * size]) / size**0.5 for token in TOKENS[image]]
                exponentials = [score.exp() for score in scores]
                first = head * size + query * part
                for token in range(7):
                    share = exponentials[token] / sum(exponentials)
                    expected[image, first : first + part] += share * values[token][first : first + part]
    # The softmax is in float32, whatever the model computes in.
    torch.testing.assert_close(module(TOKENS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("queries", "heads"), SHAPES)
def test_pooling_is_torchs_attention_without_projections_of_queries_and_keys(queries, heads):
    module = pooler(queries, heads)
    theirs = nn.MultiheadAttention(WIDTH, heads, batch_first=True).double()
    identity = torch.eye(WIDTH)
    theirs.in_proj_weight.copy_(torch.cat([identity, identity, module.value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([torch.zeros(2 * WIDTH), module.value.bias]))
    theirs.out_proj.weight.copy_(identity)
    theirs.out_proj.bias.zero_()
    found, weights = theirs(module.queries.expand(3, -1, -1), TOKENS, TOKENS, average_attn_weights=False)
    torch.testing.assert_close(module.weights(TOKENS), weights, atol=1e-6, rtol=1e-5)
    # Each query keeps its own part of every head: (batch, queries, heads, queries, part) -> those of equal queries.
    found = found.unflatten(2, (heads, queries, -1)).permute(0, 2, 4, 1, 3).diagonal(dim1=3, dim2=4)
    torch.testing.assert_close(module(TOKENS), found.transpose(2, 3).flatten(1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_order_of_the_patches_is_nothing_to_it_and_the_class_token_neither():
    module, order = pooler(4, 2), torch.randperm(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(TOKENS[:, order]), module(TOKENS), atol=1e-6, rtol=1e-6)
    model = MAEModel(config()).eval()
    states = torch.randn(2, 17, WIDTH)
    other = states.clone()
    other[:, 0] = 5
    assert torch.equal(model.pool(states), model.pool(other))
    other[:, 1] = 5
    assert not torch.equal(model.pool(states), model.pool(other))


@torch.no_grad()
def test_it_starts_as_the_mean_and_every_query_differs():
    model = MAEModel(config()).eval()
    states = torch.randn(2, 17, WIDTH)
    torch.testing.assert_close(model.pool(states), states[:, 1:].mean(1), atol=0.1, rtol=0)
    assert len(model.pooler.queries.unique(dim=0)) == 4 and 0.01 < model.pooler.queries.std() < 0.03


def test_values_that_make_no_pooling_are_refused():
    with pytest.raises(
        ValueError, match=r"num_pooling_queries=12 times num_pooling_heads=1 .*hidden_size=32.*=4 with"
    ):
        config(num_pooling_queries=12, num_pooling_heads=1)
    for field in ("num_pooling_queries", "num_pooling_heads"):
        with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
            config(**{field: 0})
    with pytest.raises(Exception, match="num_pooling_queries"):
        config(num_pooling_queries=2.5)
    tiny_config(num_pooling_queries=7)  # of no concern to another pooling


# --- training ---


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("head_norm", ["batch", "layer", "none"])
def test_the_attentive_probe_trains_pooling_norm_and_head_alone(head_norm):
    torch.manual_seed(0)
    model = EvalNet(config(head_norm=head_norm, drop_path_rate=0.5)).freeze(0).train()
    norm = {"head_norm.weight", "head_norm.bias"} if head_norm == "layer" else set()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(IMAGES, labels=LABELS).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained(model) == POOLER | HEAD | norm
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in POOLER)
    optimizer = make_optimizer(model, OptimizerSettings(0.1, 0.9, 0.999, 1.0, "adamw"))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {f"head_norm.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == trained(model) | (statistics if head_norm == "batch" else set())
    assert not model.mae.layers[1].training and model.mae.pooler.training


@pytest.mark.parametrize("n_partial", [0.5, 1, 2])
def test_every_number_of_blocks_trains_the_pooling(n_partial):
    model = EvalNet(config(head_norm="layer")).freeze(n_partial).train()
    assert trained(model) >= POOLER | HEAD | {"mae.layernorm.weight", "head_norm.weight"}
    model(IMAGES, labels=LABELS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_rate_and_decay_of_the_pooling_are_the_heads():
    model = EvalNet(config(head_norm="layer"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, 0.05, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert found["head.weight"] == found["mae.pooler.value.weight"] == found["mae.pooler.queries"] == (1, 0.05)
    assert found["head.bias"] == found["mae.pooler.value.bias"] == (1, 0)


def test_the_probe_finds_what_the_mean_hides():
    """One patch of 16 tells the class; the others are noise. The encoder stays frozen."""
    torch.manual_seed(0)
    labels = torch.arange(96) % 3
    images = 0.3 * torch.randn(96, 3, 32, 32)
    for i, label in enumerate(labels):
        row, column = 8 * (i % 4), 8 * (i // 4 % 4)
        images[i, label, row : row + 8, column : column + 8] += 3
    accuracies = {}
    for pooling in ("mean", "attention"):
        torch.manual_seed(1)
        model = EvalNet(config(pooling=pooling, head_norm="batch")).freeze(0).train()
        optimizer = make_optimizer(model, OptimizerSettings(0.0, 0.9, 0.999, 1.0, "adamw"))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for _ in range(60):
            model(images[:72], labels=labels[:72]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            accuracies[pooling] = (model.eval()(images[72:]).logits.argmax(1) == labels[72:]).float().mean().item()
    assert accuracies["attention"] > max(0.8, accuracies["mean"]), accuracies


# --- saving, loading, other classes ---


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def test_the_pooling_travels_with_the_classifier(tmp_path):
    torch.manual_seed(0)
    model = randomised(EvalNet(config(head_norm="layer")))
    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is EvalNet and not any(info.values())
    assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)
    features = model.mae(IMAGES).pooler_output
    assert features.shape == (6, WIDTH)
    for loader in (AutoModel, MAEModel):
        assert torch.equal(loader.from_pretrained(tmp_path)(IMAGES).pooler_output, features)
    # Another pooling leaves its weights behind without a word.
    mean, info = MAEModel.from_pretrained(tmp_path, pooling="mean", output_loading_info=True)
    assert not info["unexpected_keys"] and mean.pooler is None
    # Another size than trained on: attention takes any number of patches.
    assert EvalNet.from_pretrained(tmp_path, image_size=48)(torch.randn(2, 3, 48, 48)).logits.shape == (2, 3)


def test_a_pre_training_checkpoint_starts_the_pooling_new(tmp_path):
    torch.manual_seed(0)
    pretrained = randomised(MAEForPreTraining(tiny_config()))
    pretrained.save_pretrained(tmp_path)
    model, info = EvalNet.from_pretrained(
        tmp_path, **ATTENTION, head_norm="layer", num_labels=3, output_loading_info=True
    )
    assert info["missing_keys"] == POOLER | HEAD | {"head_norm.weight", "head_norm.bias"}
    assert not info["unexpected_keys"]
    assert torch.equal(model.mae.layernorm.weight, pretrained.mae.layernorm.weight)  # kept: the keys need it
    assert torch.equal(model.mae.pooler.value.weight, torch.eye(WIDTH)) and not model.mae.pooler.value.bias.any()
    assert 0.01 < model.mae.pooler.queries.std() < 0.03
    with torch.device("meta"):
        empty = EvalNet(config())
    assert {parameter.device.type for parameter in empty.mae.pooler.parameters()} == {"meta"}
    empty.to_empty(device="cpu")
    for parameter in empty.parameters():
        parameter.data.fill_(torch.nan)
    empty.init_weights()
    assert torch.equal(empty.mae.pooler.value.weight, torch.eye(WIDTH))
    assert all(torch.isfinite(parameter).all() for parameter in empty.parameters())


@pytest.mark.parametrize("model_class", [MAEForPreTraining, MAEBackbone])
def test_models_that_do_not_pool_leave_it_alone(model_class, tmp_path):
    """DDP stops where a trained parameter gets no gradient."""
    torch.manual_seed(0)
    model = model_class(config())
    outputs = model(IMAGES)
    (outputs.loss if model_class is MAEForPreTraining else outputs.feature_maps[0].sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    EvalNet(config()).save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert not [name for name, _ in loaded.named_parameters() if "pooler" in name]
    assert loaded.mae(IMAGES).pooler_output is None
    loaded.save_pretrained(tmp_path / "again")
    assert EvalNet.from_pretrained(tmp_path / "again").mae.pooler is not None  # starts new


def test_half_precision_gradient_checkpointing_and_compilation():
    torch.manual_seed(0)
    model = EvalNet(config(head_norm="batch")).eval()
    with torch.no_grad():
        expected = model(IMAGES).logits
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(IMAGES).logits, expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(IMAGES).logits.float(), expected, atol=0.05, rtol=0.1)
        assert model.bfloat16()(IMAGES.bfloat16()).logits.dtype == torch.bfloat16


# --- elsewhere ---


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    model = randomised(EvalNet(config(id2label={0: "ant", 1: "bee", 2: "cow"})))
    model.save_pretrained(tmp_path / "ours")
    image_processor((32, 32), [0.5] * 3, [0.25] * 3, 3).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours", model


def test_pipeline(checkpoint):
    folder, model = checkpoint
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    with torch.no_grad():
        normalised = (torch.tensor(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        expected = model(normalised).logits.softmax(-1)[0].tolist()
    found = pipeline("image-classification", model=str(folder), top_k=3)(Image.fromarray(pixels))
    found = {entry["label"]: entry["score"] for entry in found}
    assert found == pytest.approx(dict(zip(("ant", "bee", "cow"), expected, strict=True)), abs=1e-4)


@pytest.mark.slow
def test_graphs_carry_it(checkpoint, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, model = checkpoint
    convert(str(folder), tmp_path / "classifier.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "classifier.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": IMAGES.numpy()})
    convert(str(folder), tmp_path / "classifier.pt2", "torch")
    program = torch.export.load(tmp_path / "classifier.pt2").module()
    with torch.no_grad():
        expected = model(IMAGES).logits
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(program(IMAGES), expected)


def test_layouts_that_cannot_carry_it_refuse_by_name(checkpoint, tmp_path):
    folder, model = checkpoint
    model.mae.save_pretrained(tmp_path / "encoder")
    MAEForPreTraining(config()).save_pretrained(tmp_path / "pretraining")
    for source in (folder, tmp_path / "encoder", tmp_path / "pretraining"):
        for to in ("transformers", "vit", "timm"):
            with pytest.raises(UserError, match=r"cannot carry pooling='attention', only .*: --") as refused:
                convert(str(source), tmp_path / "other", to)
            assert "\n" not in str(refused.value) and not (tmp_path / "other").exists()
    for to in ("onnx", "torch"):
        with pytest.raises(
            UserError, match=f"--to {to} cannot carry pooling='attention' of a pre-training checkpoint"
        ):
            convert(str(tmp_path / "pretraining"), tmp_path / "graph", to)
    # The remedy for an encoder works.
    convert(str(tmp_path / "encoder"), tmp_path / "vit", "vit", pooling="mean")
    names = json.loads((tmp_path / "vit" / "config.json").read_text())["architectures"]
    assert names == ["ViTModel"]
    convert(str(folder), tmp_path / "again", "mae")
    assert torch.equal(EvalNet.from_pretrained(tmp_path / "again").mae.pooler.queries, model.mae.pooler.queries)


@torch.no_grad()
def test_frozen_features_are_not_those_of_queries_that_nothing_trained(tmp_path):
    torch.manual_seed(0)
    MAEForPreTraining(tiny_config()).save_pretrained(tmp_path / "pretraining")
    randomised(EvalNet(config())).save_pretrained(tmp_path / "classifier")
    notes = []
    encoder = frozen_encoder(open_checkpoint(tmp_path / "pretraining"), config(), notes.append)
    tokens = encoder(IMAGES).last_hidden_state
    torch.testing.assert_close(encoder(IMAGES).pooler_output, tokens[:, 1:].mean(1))
    assert len(notes) == 1 and "frozen features are the mean" in notes[0]
    encoder = frozen_encoder(open_checkpoint(tmp_path / "classifier"), config(), notes.append)
    expected = MAEModel.from_pretrained(tmp_path / "classifier")(IMAGES).pooler_output
    assert torch.equal(encoder(IMAGES).pooler_output, expected) and len(notes) == 1


@pytest.mark.parametrize("queries", [1, 8])
def test_parameters_are_counted_by_formula(queries):
    with torch.device("meta"):
        model = MAEModel(config(num_pooling_queries=queries))
    assert encoder_parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())
