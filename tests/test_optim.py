import math

import pytest
import torch

from modeling_mae import EvalNet, MAEConfig, MAEForPreTraining
from modeling_mae.training.optim import LengthSettings, OptimizerSettings, Schedule, make_optimizer, parameter_groups


def test_the_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    schedule = Schedule(updates=110, updates_per_epoch=10, warmup=10, peak=2.0)
    curve = [schedule.rate(update) for update in range(111)]
    assert curve[0] == 0 and curve[5] == pytest.approx(1.0) and curve[10] == 2.0
    assert curve[60] == pytest.approx(1.0) and curve[110] == pytest.approx(0.0)
    assert curve[35] == pytest.approx(1 + math.cos(math.pi / 4))
    assert Schedule(110, 10, 10, 2.0, floor=0.5).rate(110) == pytest.approx(0.5)
    assert Schedule(110, 10, 10, 2.0, floor=0.5).rate(60) == pytest.approx(1.25)
    assert Schedule(10, 10, 0, 2.0).rate(0) == 2.0
    assert Schedule(10, 10, 20, 2.0).rate(9) == pytest.approx(0.9)  # a trial that ends inside the warm-up


def test_the_rate_equals_torchs_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    schedule = Schedule(updates=50, updates_per_epoch=5, warmup=0, peak=0.3)
    for update in range(50):
        assert schedule.rate(update) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def from_epochs(num_images, **options) -> Schedule:
    defaults = {
        "total_batch_size": 64,
        "num_train_epochs": 5,
        "max_train_steps": None,
        "warmup_epochs": 1,
        "base_learning_rate": 0.1,
    }
    return Schedule.from_epochs(num_images, LengthSettings(**{**defaults, **options}))


def test_epochs_become_updates():
    schedule = from_epochs(1000)  # 15 whole updates an epoch; 40 images are left out
    assert (schedule.updates, schedule.updates_per_epoch, schedule.warmup) == (75, 15, 15)
    assert schedule.peak == pytest.approx(0.1 * 64 / 256) and schedule.floor == 0
    assert schedule.epoch(0) == 0 and schedule.epoch(75) == 5 and schedule.epoch(20) == pytest.approx(4 / 3)
    assert str(schedule) == "75 updates, 5 epochs of 15"
    assert from_epochs(1000, num_train_epochs=2.5, warmup_epochs=0.5).updates == 38  # 37.5: none is cut short
    assert from_epochs(1000, warmup_epochs=0.5).warmup == 8
    assert from_epochs(1000, max_train_steps=7).updates == 7 and from_epochs(1000, max_train_steps=7).warmup == 15
    assert from_epochs(1000, min_learning_rate=1e-6).floor == 1e-6
    assert from_epochs(10).updates_per_epoch == 1


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
    ours = make_optimizer(layer, OptimizerSettings(0.1, 0.9, 0.95, 1.0, "adamw"))
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
    options = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
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
    assert options == expected


def test_frozen_parameters_are_in_no_group():
    model = small_net().freeze(0)
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.0)) == 2


def probing(model) -> torch.optim.Optimizer:
    return make_optimizer(model, OptimizerSettings(0.0, 0.9, 0.95, 1.0, "lars"))


def test_lars_is_the_papers_closed_form():
    """Of arXiv 1708.03888 with momentum outside the trust ratio, as the official code; nothing adapted in 1-D."""
    model = small_net().freeze(0)
    torch.manual_seed(0)
    optimizer = probing(model)
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
    optimizer = probing(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.bias.grad = torch.zeros_like(model.head.bias)
    optimizer.step()
    assert torch.equal(model.head.weight, torch.full_like(model.head.weight, -0.5)) and not model.head.bias.any()


def test_sgd_has_momentum_and_layer_decay_scales_the_rates():
    model = small_net().freeze(0)
    model.head.weight.data.fill_(1.0)
    optimizer = make_optimizer(model, OptimizerSettings(0.0, 0.9, 0.95, 1.0, "sgd"))
    velocity, value = 0.0, 1.0
    for gradient in (1.0, 3.0, -2.0):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        model.head.weight.grad = torch.full_like(model.head.weight, gradient)
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        value -= 0.1 * velocity
    torch.testing.assert_close(model.head.weight.detach(), torch.full_like(model.head.weight, value))
    groups = make_optimizer(small_net(), OptimizerSettings(0.0, 0.9, 0.95, 0.5, "sgd")).param_groups
    assert {group["lr_scale"] for group in groups} == {0.125, 0.25, 0.5, 1.0}


def test_an_optimizer_that_there_is_not():
    with pytest.raises(ValueError, match="optimizer 'adam' is not one of adamw, lars, sgd"):
        make_optimizer(small_net(), OptimizerSettings(0.0, 0.9, 0.95, 1.0, "adam"))
