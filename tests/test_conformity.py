"""What transformers' common tests ask of a vision model, asked of every class of ours.

Left out, with the reason: resizing of token embeddings, tied weights, generation, caches and padding masks (no text);
feed-forward chunking (`test_no_feed_forward_chunking`); flash attention, tensor parallelism and several GPUs (need
GPUs); `torch.jit` (deprecated; `torch.export` is tested).
"""

import copy
import json
import pickle

import pytest
import torch
from conftest import TINY, assert_same_weights
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)

from modeling_mae import (
    EvalNet,
    MAEBackbone,
    MAEConfig,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
    MAEPreTrainedModel,
)
from modeling_mae.modeling_mae import MAECrossLayer, MAELayer


FIELDS = {**TINY, "num_hidden_layers": 3, "num_labels": 5}
CLASSES = [MAEModel, MAEForPreTraining, EvalNet, MAEForSemanticSegmentation, MAEBackbone]
CROSS = {"decoder_type": "cross", "prediction_ratio": 0.25}
# AutoBackbone takes no folder.
AUTO_CLASSES = {
    MAEModel: AutoModel,
    MAEForPreTraining: AutoModelForPreTraining,
    EvalNet: AutoModelForImageClassification,
    MAEForSemanticSegmentation: AutoModelForSemanticSegmentation,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))

every_class = pytest.mark.parametrize("model_class", CLASSES)


def tiny(model_class: type[MAEPreTrainedModel], **changes) -> MAEPreTrainedModel:
    """With all values different from those that initialisation would give."""
    torch.manual_seed(0)
    model = model_class(MAEConfig(**{**FIELDS, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def inputs(model_class: type, images: torch.Tensor = IMAGES, noise: torch.Tensor = NOISE) -> dict[str, torch.Tensor]:
    if model_class is MAEForPreTraining:
        return {"pixel_values": images, "noise": noise}
    if model_class is EvalNet:
        return {"pixel_values": images, "labels": torch.arange(len(images))}
    if model_class is MAEForSemanticSegmentation:
        labels = torch.arange(images[0, 0].numel()).view(1, *images.shape[2:]) % FIELDS["num_labels"]
        return {"pixel_values": images, "labels": labels.repeat(len(images), 1, 1)}
    return {"pixel_values": images}


def tensors(output) -> list[torch.Tensor]:
    return [x for value in output.to_tuple() for x in (value if isinstance(value, tuple) else (value,))]


def assert_same(output, other, **tolerance):
    pairs = list(zip(tensors(output), tensors(other), strict=True))
    assert pairs
    for one, two in pairs:
        torch.testing.assert_close(one, two, **(tolerance or {"atol": 0, "rtol": 0}))


EVERY_KIND = {"params": [*CLASSES, CROSS], "ids": lambda param: getattr(param, "__name__", "cross decoder")}


def of_kind(kind, **changes) -> MAEPreTrainedModel:
    return tiny(MAEForPreTraining, **CROSS, **changes) if kind is CROSS else tiny(kind, **changes)


@pytest.fixture(**EVERY_KIND)
def model(request) -> MAEPreTrainedModel:
    return of_kind(request.param)


@pytest.fixture(**EVERY_KIND)
def shallow_model(request) -> MAEPreTrainedModel:
    """Encoder and decoder have one layer: a compiler takes its time for each."""
    return of_kind(request.param, num_hidden_layers=1, decoder_num_hidden_layers=1)


def run(model: MAEPreTrainedModel, **options):
    with torch.no_grad():
        return model(**inputs(type(model)), **options)


# --- saving and loading ---


def test_save_and_load_to_the_bit(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    state = model.state_dict()
    assert all(torch.equal(value, state.pop(key)) for key, value in loaded.state_dict().items()) and not state
    assert_same(run(loaded), run(model))


@every_class
@pytest.mark.parametrize(
    "changes",
    [
        {"num_channels": 1},
        {"num_channels": 4, "image_size": [16, 48]},
        {"num_channels": 13, "patch_size": [8, 16], "position_embedding": "learned"},
    ],
)
def test_every_kind_of_image_comes_back_to_the_bit(model_class, changes, tmp_path):
    model = tiny(model_class, **changes)
    height, width = model.config.image_height_width
    images, noise = torch.randn(2, model.config.num_channels, height, width), torch.rand(2, model.config.num_patches)
    example = inputs(model_class, images, noise)
    model.save_pretrained(tmp_path)
    for loader in (model_class, AUTO_CLASSES.get(model_class, model_class)):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is model_class
        assert_same_weights(loaded.state_dict(), model.state_dict())
        assert_same(loaded(**example), model(**example))
    for loader in (AutoModel, MAEModel):
        encoder = loader.from_pretrained(tmp_path)
        assert torch.equal(encoder(images).pooler_output, getattr(model, "mae", model)(images).pooler_output)


def test_files_hold_no_pickles(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    code = {"configuration_mae.py", "masking_mae.py", "modeling_mae.py"}
    if isinstance(model, MAEForSemanticSegmentation):
        code.add("segmentation_mae.py")
    assert names == {"config.json", "model.safetensors", *code}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert file.metadata()["format"] == "pt"


def test_shards_and_variants(model, tmp_path):
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert_same(run(type(model).from_pretrained(tmp_path / "shards")), run(model))
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    assert (tmp_path / "variant" / "model.fp16.safetensors").exists()
    with pytest.raises(OSError):
        type(model).from_pretrained(tmp_path / "variant")
    assert_same(run(type(model).from_pretrained(tmp_path / "variant", variant="fp16")), run(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_at_load(model, tmp_path, dtype):
    model.to(dtype).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).split(".")[1]
    for options, expected in (({}, dtype), ({"dtype": torch.float32}, torch.float32), ({"dtype": "auto"}, dtype)):
        loaded = type(model).from_pretrained(tmp_path, **options)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}, options
        floats = {x.dtype for x in tensors(loaded(IMAGES.to(expected))) if x.is_floating_point()}
        assert floats <= {expected, torch.float32}


def test_device_maps(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map="auto")
    assert_same(run(loaded), run(model))
    meta = type(model).from_pretrained(tmp_path, device_map="meta")
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    # As with a GPU that is too small: part of the model stays on disk, and no block is cut.
    size = sum(parameter.nbytes for parameter in model.parameters())
    offloaded = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": size // 2}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in offloaded.hf_device_map.values()
    assert_same(run(offloaded), run(model))


@every_class
def test_loads_every_other_class_of_checkpoint(model_class, tmp_path):
    """The encoder's weights arrive, what a class does not have is left, what is missing starts anew."""
    for source in CLASSES:
        original = tiny(source)
        original.save_pretrained(tmp_path)
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        new = {MAEForPreTraining: "decoder.", EvalNet: "head.", MAEForSemanticSegmentation: "segmenter."}
        own = new.get(model_class, "nothing")
        assert all(key.startswith(own) for key in info["missing_keys"]) or source is model_class
        encoder = getattr(loaded, "mae", loaded).state_dict()
        expected = getattr(original, "mae", original).state_dict()
        assert all(torch.equal(value, encoder[key]) for key, value in expected.items())
        assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())


def test_missing_weights_start_as_init_weights_says(tmp_path):
    tiny(MAEModel).save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = MAEForPreTraining.from_pretrained(tmp_path, decoder_hidden_size=256)
    fresh = MAEForPreTraining(loaded.config)
    assert torch.equal(loaded.decoder.positions.table, fresh.decoder.positions.table)
    linear = loaded.decoder.layers[0].mlp.fc1
    bound = (6 / (linear.in_features + linear.out_features)) ** 0.5  # xavier-uniform
    assert linear.weight.abs().max() <= bound and linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert linear.bias.abs().max() == 0
    assert loaded.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("model_class", "changes"), [*((one, {}) for one in CLASSES), (MAEForPreTraining, CROSS)])
def test_initialisation_owns_every_tensor(model_class, changes):
    """On the meta device nothing is set but by `_init_weights`: garbage must not survive."""
    with torch.device("meta"):
        model = model_class(MAEConfig(**FIELDS, **changes, head_norm="batch"))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(77)
    for module in model.modules():
        model._init_weights(module)
    assert all((tensor != 77).all() for tensor in model.state_dict().values())


def test_mismatched_sizes(tmp_path):
    tiny(EvalNet).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        EvalNet.from_pretrained(tmp_path, num_labels=7)
    loaded, info = EvalNet.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"head.weight", "head.bias"}
    assert loaded.head.weight.std() < 1e-4 and loaded.head.bias.abs().max() == 0  # 2e-5, as for a new head
    assert torch.isfinite(loaded(IMAGES).logits).all()
    # Positions of another size are interpolated, never lost
    assert EvalNet.from_pretrained(tmp_path, image_size=64).mae.embeddings.positions.table.shape == (1, 65, 32)


def test_no_weights_are_tied_or_ignored(model):
    assert not model.all_tied_weights_keys and not getattr(model, "_keys_to_ignore_on_save", None)
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    assert len(pointers) == len(set(pointers))


def test_copies_and_pickles(model):
    assert_same(run(copy.deepcopy(model)), run(model))
    if not isinstance(model, MAEBackbone):  # transformers hangs local functions into every backbone
        assert_same(run(pickle.loads(pickle.dumps(model))), run(model))


# --- outputs ---


def test_determinism_and_batching(model):
    assert_same(run(model), run(model))
    if type(model) in (MAEModel, EvalNet):
        single = [model(IMAGES[i : i + 1]).to_tuple()[0] for i in range(2)]
        torch.testing.assert_close(torch.cat(single), model(IMAGES).to_tuple()[0], atol=1e-5, rtol=1e-5)


def test_tuples_in_place_of_outputs(model):
    output, plain = run(model), run(model, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(output.to_tuple())
    flat = [x for value in plain for x in (value if isinstance(value, tuple) else (value,))]
    assert all(torch.equal(one, two) for one, two in zip(tensors(output), flat, strict=True))
    model.config.return_dict = False
    assert isinstance(run(model), tuple)


def test_hidden_states_and_attentions(model):
    # Pre-training encodes the quarter of the patches that is visible.
    tokens = 5 if isinstance(model, MAEForPreTraining) else 17
    output = run(model, output_hidden_states=True, output_attentions=True)
    assert [tuple(x.shape) for x in output.hidden_states] == [(2, tokens, 32)] * 4
    assert [tuple(x.shape) for x in output.attentions] == [(2, 4, tokens, tokens)] * 3
    for attention in output.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, tokens))
    plain = run(model)
    assert "hidden_states" not in plain and "attentions" not in plain
    # Attentions are computed by hand, without the fused kernel: the rest of the output must not change.
    for name in plain:
        torch.testing.assert_close(output[name], plain[name], atol=1e-5, rtol=1e-5)
    model.set_attn_implementation("eager")  # transformers refuses the next line with sdpa
    model.config.output_hidden_states = model.config.output_attentions = True
    output = run(model)
    assert len(output.hidden_states) == 4 and len(output.attentions) == 3


def test_eager_equals_sdpa(model):
    assert model.config._attn_implementation == "sdpa"
    expected = run(model)
    model.set_attn_implementation("eager")
    assert_same(run(model), expected, atol=1e-5, rtol=1e-5)
    eager = type(model)._from_config(model.config, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"


def test_gradients_reach_everything_and_are_retained(model):
    model.train()
    output = model(**inputs(type(model)), output_hidden_states=True)
    output.hidden_states[0].retain_grad()
    loss = output.feature_maps[0].sum() if isinstance(model, MAEBackbone) else tensors(output)[0]
    loss.mean().backward()
    assert output.hidden_states[0].grad is not None
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all(not model.get_parameter(name).requires_grad for name in without)
    fixed = ("positions.table",)  # sin-cos
    if model.config.decoder_type == "cross":
        fixed += ("mae.layernorm.weight", "mae.layernorm.bias")  # this decoder reads the blocks' outputs before it
    assert all(name.endswith(fixed) for name in without)


def test_gradient_checkpointing(model):
    other = copy.deepcopy(model).train()
    new = hasattr(other, "activation_checkpointing_enable")  # transformers before 5.20 has the old names
    other.activation_checkpointing_enable() if new else other.gradient_checkpointing_enable()
    layers = [module for module in other.modules() if isinstance(module, (MAELayer, MAECrossLayer))]
    assert all(module.gradient_checkpointing for module in layers)
    for one in (model.train(), other):
        output = one(**inputs(type(model)))
        (output.feature_maps[0] if isinstance(one, MAEBackbone) else tensors(output)[0]).square().mean().backward()
    for (name, parameter), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (parameter.grad is None) == (twin.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, twin.grad, msg=name)
    other.activation_checkpointing_disable() if new else other.gradient_checkpointing_disable()
    assert not any(module.gradient_checkpointing for module in layers)


@every_class
@pytest.mark.parametrize("position_embedding", ["sincos", "learned"])
@pytest.mark.parametrize("size", [(48, 64), (48, 24)])
def test_another_size(model_class, position_embedding, size):
    """At call time, and for good; larger, and smaller along one axis."""
    model = tiny(model_class, position_embedding=position_embedding)
    images, patches = torch.randn(2, 3, *size), size[0] * size[1] // 64
    if isinstance(model, MAEBackbone):
        assert model(images).feature_maps[0].shape == (2, 32, size[0] // 8, size[1] // 8)
        return
    expected = model(images, **({"noise": torch.zeros(2, patches)} if isinstance(model, MAEForPreTraining) else {}))
    if isinstance(model, MAEForPreTraining):
        assert expected.logits.shape == (2, patches, 192)
    assert all(torch.isfinite(tensor).all() for tensor in tensors(expected))
    model.set_image_size(size)
    again = model(images, **({"noise": torch.zeros(2, patches)} if isinstance(model, MAEForPreTraining) else {}))
    assert_same(again, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compile(shallow_model):
    """Without a graph break, as in use; pre-training also while gradients are recorded."""
    model = shallow_model
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for gradients in {False, isinstance(model, MAEForPreTraining)}:
        with torch.set_grad_enabled(gradients):
            output = compiled(**inputs(type(model)))
            assert_same(output, model(**inputs(type(model))), atol=1e-5, rtol=1.3e-6)


def test_export_with_a_dynamic_batch(shallow_model):
    model = shallow_model
    example, batch = inputs(type(model)), torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(
            model, (), example, dynamic_shapes={key: {0: batch} for key in example}, strict=False
        )
        single = {key: value[:1] for key, value in example.items()}
        assert_same(program.module()(**single), model(**single), atol=1e-5, rtol=1e-5)


def test_what_transformers_asks_a_model(model):
    assert model.main_input_name == "pixel_values" and model.input_modalities == ("image",)
    assert model.get_input_embeddings() is getattr(model, "mae", model).embeddings.patch_embeddings
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.base_model is getattr(model, "mae", model)


# --- configuration ---


def test_config_round_trips(tmp_path):
    config = MAEConfig(
        **FIELDS, image_mean_of_the_lab=0.3, out_indices=[1, 3], id2label={i: f"c{i}" for i in range(5)}
    )
    config.save_pretrained(tmp_path)
    config.to_json_file(tmp_path / "whole.json", use_diff=False)
    for again in (
        MAEConfig.from_pretrained(tmp_path),
        MAEConfig.from_json_file(tmp_path / "whole.json"),
        MAEConfig.from_dict(config.to_dict()),
        AutoConfig.from_pretrained(tmp_path),
        copy.deepcopy(config),
    ):
        assert again.image_mean_of_the_lab == 0.3
        assert again.out_features == ["stage1", "stage3"] and again.id2label[4] == "c4"
        assert {key: getattr(again, key) for key in FIELDS} == FIELDS
        assert again.to_json_string() == config.to_json_string()


def test_config_overrides_at_load(tmp_path):
    tiny(MAEModel).save_pretrained(tmp_path)
    shallow = AutoModel.from_pretrained(tmp_path, num_hidden_layers=2)
    shallow.save_pretrained(tmp_path)
    assert len(AutoModel.from_pretrained(tmp_path).layers) == 2
    assert MAEBackbone.from_pretrained(tmp_path).out_features == ["stage2"]
    config, unused = MAEConfig.from_pretrained(tmp_path, pooling="cls", return_unused_kwargs=True, odd=1)
    assert config.pooling == "cls" and unused == {"odd": 1}


def test_no_feed_forward_chunking():
    with pytest.raises(ValueError, match="chunk_size_feed_forward=8"):
        MAEConfig(**FIELDS, chunk_size_feed_forward=8)


@every_class
def test_arguments_of_models_of_text(model_class):
    """PEFT and others give them to every model, mostly as None."""
    model = tiny(model_class)
    given = inputs(model_class)
    model(**given, attention_mask=None, input_ids=None, inputs_embeds=None)
    with pytest.raises(ValueError, match="attention_mask"):
        model(**given, attention_mask=torch.ones(2, 17))
