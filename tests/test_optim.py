import math

import pytest
import torch

from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.training.optim import adamw, learning_rate, parameter_groups


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
