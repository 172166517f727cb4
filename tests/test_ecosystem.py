"""With the real libraries: PEFT and quantisation. The extra `ecosystem` installs them; a missing one is a failure."""

import copy

import pytest
import torch
from conftest import tiny_config

from modeling_mae import EvalNet, MAEForPreTraining, MAEModel
from modeling_mae.segmentation_mae import MAEForSemanticSegmentation


pytestmark = pytest.mark.ecosystem
PIXELS = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
WIDE = {"image_size": 64, "hidden_size": 128, "intermediate_size": 256}  # 4-bit blocks hold 64 values


def model_of(model_class, **changes):
    torch.manual_seed(0)
    config = tiny_config(**{**WIDE, "num_labels": 3, "head_initializer_range": 0.5, **changes})
    return model_class(config).eval()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.float().flatten(1), other.float().flatten(1)).min().item()


# --- adapters ---


def lora(model, **options):
    import peft

    options = {"r": 4, "target_modules": ["qkv", "proj"], "lora_dropout": 0.5, **options}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def learned(model, labels=LABELS):
    """A few updates, so that the adapters change something."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    for _ in range(3):
        model(pixel_values=PIXELS, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def assert_the_same_saved_loaded_and_merged(model, base, folder) -> None:
    """`model` has adapters that have changed what `base` says."""
    import peft

    expected = model(pixel_values=PIXELS).logits
    assert not torch.allclose(expected, base(PIXELS).logits, atol=1e-3)
    model.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
    torch.testing.assert_close(loaded(pixel_values=PIXELS).logits, expected)
    torch.testing.assert_close(loaded.merge_and_unload()(PIXELS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_adapters_saved_loaded_and_merged_give_the_same(tmp_path, task):
    base = model_of(EvalNet)
    model = learned(lora(copy.deepcopy(base), task_type=task, modules_to_save=["head"]))
    assert_the_same_saved_loaded_and_merged(model, base, tmp_path)


@pytest.mark.parametrize("head", ["linear", "multiscale", "upernet"])
def test_adapters_of_a_segmentation_model(tmp_path, head):
    base = model_of(MAEForSemanticSegmentation, segmentation_head=head)
    model = lora(copy.deepcopy(base), target_modules=["qkv"], modules_to_save=["segmenter"])
    learned(model, labels=LABELS[:, None, None].expand(8, 64, 64))
    assert_the_same_saved_loaded_and_merged(model, base, tmp_path)


def test_adapters_of_an_encoder_as_peft_calls_it():
    """FEATURE_EXTRACTION gives every model attention_mask=None, input_ids=None, ..."""
    encoder = model_of(MAEModel)
    model = lora(copy.deepcopy(encoder), task_type="FEATURE_EXTRACTION").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=PIXELS).pooler_output, encoder(PIXELS).pooler_output)
        with pytest.raises(ValueError, match="attention_mask"):
            model(pixel_values=PIXELS, attention_mask=torch.ones(8, 65))


@pytest.mark.parametrize("reads", ["blocks", "stages", "last"])
def test_adapters_on_all_linears_of_a_cross_decoder(reads):
    base = model_of(MAEForPreTraining, decoder_type="cross", decoder_reads=reads)
    model = lora(copy.deepcopy(base), target_modules="all-linear").train()
    noise = torch.rand(8, 64)
    loss = model(pixel_values=PIXELS, noise=noise).loss
    loss.backward()
    torch.testing.assert_close(loss, base(PIXELS, noise=noise).loss)  # adapters start as nothing
    adapters = {name: weight for name, weight in model.named_parameters() if "lora_B" in name}
    assert all(weight.grad is not None for weight in adapters.values())
    assert any("decoder" in name for name in adapters)


@pytest.mark.parametrize("saved", [["head"], ["head", "head_norm"]])
def test_adapters_beside_a_batch_norm_are_loaded_as_they_were_trained(tmp_path, saved):
    import peft

    base = model_of(EvalNet, head_norm="batch")
    model = learned(lora(copy.deepcopy(base), modules_to_save=saved))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values=PIXELS).logits, model(pixel_values=PIXELS).logits)
    statistics = dict(model.named_buffers())
    moved = [name for name, mean in statistics.items() if name.endswith("running_mean") and mean.any()]
    assert bool(moved) == ("head_norm" in saved)


@pytest.mark.parametrize("n_partial", [0, 0.5, 1, 2])
def test_freezing_before_adapters_leaves_their_dropout_on(n_partial):
    model = lora(model_of(EvalNet).freeze(n_partial), modules_to_save=["head"]).train()
    dropouts = [module for name, module in model.named_modules() if name.endswith("lora_dropout.default")]
    assert dropouts and all(module.training for module in dropouts)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)


def test_freezing_after_adapters_is_refused():
    model = lora(model_of(EvalNet))
    with pytest.raises(ValueError, match="modules_to_save"):
        model.base_model.model.freeze(1)
    merged = model.merge_and_unload()
    assert merged.freeze(1).n_partial == 1


# --- quantisation ---


def features_of(folder, **options) -> torch.Tensor:
    model = MAEModel.from_pretrained(folder, device_map="cpu", **options).eval()
    with torch.no_grad():
        return model(PIXELS).pooler_output


@pytest.fixture
def saved(tmp_path):
    """(folder, its features in float32)."""
    model = model_of(MAEModel)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        return tmp_path, model(PIXELS).pooler_output


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(saved, bits):
    from transformers import BitsAndBytesConfig

    folder, expected = saved
    found = features_of(folder, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    assert cosine(found, expected) >= 0.98


def test_torch_quantize_dynamic(saved):
    folder, expected = saved
    model = MAEModel.from_pretrained(folder).eval()
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    with torch.no_grad():
        assert cosine(model(PIXELS).pooler_output, expected) >= 0.98


def test_torchao(saved):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import TorchAoConfig

    folder, expected = saved
    model = MAEModel.from_pretrained(folder).eval()
    quantize_(model, Int8WeightOnlyConfig())
    with torch.no_grad():
        assert cosine(model(PIXELS).pooler_output, expected) >= 0.98
    found = features_of(folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    assert cosine(found, expected) >= 0.98
