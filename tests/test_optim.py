import math

import pytest
import torch

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining
from modeling_mae.training.optim import adamw, lars, learning_rate, parameter_groups


def test_learning_rate_curve():
    curve = [learning_rate(u, peak=2.0, warmup=10, total=110) for u in range(111)]
    assert curve[0] == 0 and curve[5] == pytest.approx(1.0) and curve[10] == 2.0
    assert curve[60] == pytest.approx(1.0) and curve[110] == pytest.approx(0.0)
    assert curve[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(110, peak=2.0, warmup=10, total=110, floor=0.5) == pytest.approx(0.5)
    assert learning_rate(0, peak=2.0, warmup=0, total=10) == 2.0


def test_learning_rate_equals_torchs_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for update in range(50):
        assert learning_rate(update, peak=0.3, warmup=0, total=50) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_weight_decay_falls_on_matrices_only():
    config = MAEConfig(
        image_size=16,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        decoder_hidden_size=8,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
        position_embedding="learned",
    )
    model = MAEForPreTraining(config)
    decayed, free = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with_decay = {names[id(p)] for p in decayed["params"]}
    without = {names[id(p)] for p in free["params"]}
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0
    assert with_decay | without == set(names.values()) and not with_decay & without
    linears = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert with_decay == linears


def test_fixed_positions_are_not_optimized():
    config = MAEConfig(image_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = MAEForPreTraining(config)
    optimized = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert id(model.mae.embeddings.positions.table) not in optimized
    assert id(model.decoder.positions.table) not in optimized


def test_adamw_is_torchs_with_the_given_betas():
    torch.manual_seed(0)
    layer, reference = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    reference.load_state_dict(layer.state_dict())
    ours = adamw(layer, weight_decay=0.1, betas=(0.9, 0.95))
    # Decay on the weight alone, as two optimizers of torch.
    theirs = [
        torch.optim.AdamW([reference.weight], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=False),
        torch.optim.AdamW([reference.bias], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=False),
    ]
    for _ in range(5):
        inputs = torch.randn(6, 4)
        for module, optimizers in ((layer, [ours]), (reference, theirs)):
            module.zero_grad()
            module(inputs).square().sum().backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 0.01
                optimizer.step()
    torch.testing.assert_close(layer.weight, reference.weight)
    torch.testing.assert_close(layer.bias, reference.bias)


def small_net(**overrides):
    config = MAEConfig(
        image_size=16,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        position_embedding="learned",
        num_labels=3,
        **overrides,
    )
    return EvalNet(config)


def test_layer_decay_of_every_parameter_by_name():
    model = small_net(head_norm="layer")
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    block = {
        "norm1.weight": 0,
        "norm1.bias": 0,
        "attention.qkv.weight": 0.05,
        "attention.qkv.bias": 0,
        "attention.proj.weight": 0.05,
        "attention.proj.bias": 0,
        "norm2.weight": 0,
        "norm2.bias": 0,
        "mlp.fc1.weight": 0.05,
        "mlp.fc1.bias": 0,
        "mlp.fc2.weight": 0.05,
        "mlp.fc2.bias": 0,
    }
    expected = {  # 0.5 ** (depth + 1 - id), depth 2
        "mae.embeddings.patch_embeddings.weight": (0.125, 0.05),
        "mae.embeddings.patch_embeddings.bias": (0.125, 0),
        "mae.embeddings.cls_token": (0.125, 0),
        "mae.embeddings.positions.table": (0.125, 0),
        **{f"mae.layers.0.{name}": (0.25, decay) for name, decay in block.items()},
        **{f"mae.layers.1.{name}": (0.5, decay) for name, decay in block.items()},
        "head_norm.weight": (1.0, 0),
        "head_norm.bias": (1.0, 0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0),
    }
    assert found == expected


def test_frozen_parameters_are_in_no_group():
    model = small_net().freeze(0)
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.0)) == 2


def test_lars_is_the_papers_closed_form():
    """Of arXiv 1708.03888 with momentum outside the trust ratio, as the official code; nothing adapted in 1-D."""
    model = small_net().freeze(0)
    torch.manual_seed(0)
    optimizer = lars(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    parameters = {"weight": model.head.weight, "bias": model.head.bias}
    parameters["bias"].data.normal_()
    values = {name: p.detach().double().clone() for name, p in parameters.items()}
    momentum = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(4):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn_like(parameter) * 10**step
            gradient = parameter.grad.double()
            if name == "weight":
                gradient = gradient * 0.001 * values[name].norm() / gradient.norm()
            momentum[name] = 0.9 * momentum[name] + gradient
            values[name] = values[name] - 0.3 * momentum[name]
        optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), values[name], rtol=1e-5, atol=1e-6)


def test_lars_leaves_weights_without_norm_or_gradient_unadapted():
    model = small_net().freeze(0)
    model.head.weight.data.zero_()
    optimizer = lars(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.bias.grad = torch.zeros_like(model.head.bias)
    optimizer.step()
    assert torch.equal(model.head.weight, torch.full_like(model.head.weight, -0.5)) and not model.head.bias.any()
