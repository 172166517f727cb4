"""Several labels an image, and regression: losses, labels, metrics, and run_eval.py with both."""

import datasets
import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from conftest import TINY_GRAY
from timm.data import Mixup
from transformers import (
    ViTConfig,
    ViTForImageClassification,
)

from modeling_mae import EvalNet, MAEConfig
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.data.find.sources import Source, find_label_column
from modeling_mae.errors import UserError
from modeling_mae.evaluation.features import knn_metrics
from modeling_mae.evaluation.reader import FrozenSet
from modeling_mae.tasks import CLASSES, NUMBERS, SEVERAL_CLASSES, TASKS, task_of_labels
from modeling_mae.tasks.evalnet import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from modeling_mae.training.augment import Mix
from modeling_mae.training.optim import OptimizerSettings, make_optimizer


SMALL = {**TINY_GRAY, "image_size": 16, "patch_size": 4}


# --- losses ---


def net(num_labels, **fields):
    torch.manual_seed(0)
    return EvalNet(MAEConfig(**{**SMALL, **fields, "head_initializer_range": 0.5, "num_labels": num_labels})).eval()


def loss_of_transformers(logits, labels, problem_type):
    """transformers' own head, whose encoder is replaced by what gives these logits."""
    sizes = {"hidden_size": logits.shape[1], "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    config = ViTConfig(**sizes, image_size=16, patch_size=16, num_labels=logits.shape[1], problem_type=problem_type)
    model = ViTForImageClassification(config).eval()

    class Encoder(torch.nn.Module):
        def forward(self, *_, **__):
            return type(
                "Output", (), {"last_hidden_state": logits[:, None], "hidden_states": None, "attentions": None}
            )()

    model.vit, model.classifier = Encoder(), torch.nn.Identity()
    return model(torch.zeros(len(logits), 3, 16, 16), labels=labels).loss


@pytest.mark.parametrize(
    "problem_type, num_labels, shape",
    [
        (SINGLE_LABEL, 5, (7,)),
        (None, 5, (7,)),
        (MULTI_LABEL, 5, (7, 5)),
        (MULTI_LABEL, 1, (7, 1)),
        (REGRESSION, 3, (7, 3)),
        (REGRESSION, 1, (7,)),
        (REGRESSION, 1, (7, 1)),
        (None, 1, (7,)),
    ],
)
def test_losses_are_those_of_transformers(problem_type, num_labels, shape):
    model = net(num_labels, problem_type=problem_type)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(7, 1, 16, 16, generator=generator)
    if problem_type in (SINGLE_LABEL, None) and num_labels > 1:
        labels = torch.randint(num_labels, shape, generator=generator)
    elif problem_type == MULTI_LABEL:
        labels = torch.randint(2, shape, generator=generator).float()
    else:
        labels = torch.randn(shape, generator=generator)
    outputs = model(images, labels=labels)
    expected = loss_of_transformers(outputs.logits.detach(), labels, problem_type)
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_whole_numbers_are_as_good_as_floats():
    images, labels = torch.randn(4, 1, 16, 16), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    for problem_type in (MULTI_LABEL, REGRESSION):
        model = net(2, problem_type=problem_type)
        assert torch.equal(model(images, labels=labels).loss, model(images, labels=labels.float()).loss)


@pytest.mark.parametrize("problem_type", [None, SINGLE_LABEL])
def test_probabilities_of_mixup_stay_one_distribution(problem_type):
    """Bit by bit what it was, with its smoothing."""
    model = net(5, problem_type=problem_type, label_smoothing=0.1).train()
    images, mixed = torch.randn(6, 1, 16, 16), torch.rand(6, 5).softmax(1)
    outputs = model(images, labels=mixed)
    assert torch.equal(outputs.loss, F.cross_entropy(outputs.logits, mixed, label_smoothing=0.1))


@pytest.mark.parametrize("problem_type", [MULTI_LABEL, REGRESSION])
def test_labels_of_another_shape_are_refused(problem_type):
    model = net(3, problem_type=problem_type)
    for labels in (torch.zeros(4), torch.zeros(4, 1), torch.zeros(4, 2), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match=rf"labels of shape .* are not \(4, 3\).*{problem_type}.*num_labels=3"):
            model(torch.zeros(4, 1, 16, 16), labels=labels)


def test_smoothing_is_for_one_class_an_image():
    images, labels = torch.randn(4, 1, 16, 16), torch.rand(4, 3)
    for problem_type in (MULTI_LABEL, REGRESSION):
        plain, smoothed = (net(3, problem_type=problem_type, label_smoothing=s).train() for s in (0.0, 0.3))
        assert torch.equal(plain(images, labels=labels).loss, smoothed(images, labels=labels).loss)


# --- labels ---


def source_of(values, feature, column="label"):
    features = datasets.Features({column: feature})
    return Source(datasets.Dataset.from_dict({column: values}, features=features), "image", column, "toys")


INTS, FLOATS = datasets.Sequence(datasets.Value("int64")), datasets.Sequence(datasets.Value("float32"))
NAMED = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "cow"]))


@pytest.mark.parametrize(
    "values, feature, problem_type",
    [
        ([0, 2], datasets.Value("int64"), SINGLE_LABEL),
        (["a", "b"], datasets.Value("string"), SINGLE_LABEL),
        ([0, 1], datasets.ClassLabel(names=["a", "b"]), SINGLE_LABEL),
        ([0.5, 1], datasets.Value("float64"), REGRESSION),
        ([[0.5, 1.0], [0.0, 2.0]], FLOATS, REGRESSION),
        ([[0.0, 1.0], [1.0, 0.0]], FLOATS, MULTI_LABEL),
        ([[0], [1, 2]], INTS, MULTI_LABEL),
        ([["a"], []], datasets.Sequence(datasets.Value("string")), MULTI_LABEL),
        ([[0], [1, 2]], NAMED, MULTI_LABEL),
    ],
)
def test_the_column_tells_the_problem(values, feature, problem_type):
    assert task_of_labels(source_of(values, feature)).name == problem_type


@pytest.mark.parametrize(
    "values, feature, names, matrix",
    [
        ([[0, 2], [], [1]], NAMED, ["cat", "dog", "cow"], [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        ([[0, 1], [1]], NAMED, ["cat", "dog", "cow"], [[1, 1, 0], [0, 1, 0]]),
        ([[0, 2], [1]], INTS, ["0", "1", "2"], [[1, 0, 1], [0, 1, 0]]),
        ([[1], [0]], INTS, ["0", "1"], [[0, 1], [1, 0]]),  # a class each
        ([[0, 1, 1], [0, 0, 0]], INTS, ["0", "1", "2"], [[0, 1, 1], [0, 0, 0]]),  # 0 or 1 for each class
        ([[0.0, 1.0], [1.0, 1.0]], FLOATS, ["0", "1"], [[0, 1], [1, 1]]),
        ([[True, False]], datasets.Sequence(datasets.Value("bool")), ["0", "1"], [[1, 0]]),
        ([["b", "a"], ["b"]], datasets.Sequence(datasets.Value("string")), ["a", "b"], [[1, 1], [0, 1]]),
    ],
)
def test_several_labels_as_0_and_1(values, feature, names, matrix):
    labels, found = SEVERAL_CLASSES.read(source_of(values, feature))
    assert labels.dtype == np.float32 and labels.tolist() == matrix and found == names


def test_evaluation_follows_the_trained_names():
    words = datasets.Sequence(datasets.Value("string"))
    labels, names = SEVERAL_CLASSES.read(source_of([["b"], ["a"]], words), ["b", "c", "a"])
    assert labels.tolist() == [[1, 0, 0], [0, 0, 1]] and names == ["b", "c", "a"]
    # of numbered classes, also where each image has as many and the numbers are 0 and 1
    labels, _ = SEVERAL_CLASSES.read(source_of([[0, 1], [1, 0]], INTS), ["0", "1", "2"])
    assert labels.tolist() == [[1, 1, 0], [1, 1, 0]]
    with pytest.raises(UserError, match=r"toys has 1 classes that the training images do not have \(d\)"):
        SEVERAL_CLASSES.read(source_of([["b"], ["d"]], words), ["b", "c", "a"])
    with pytest.raises(UserError, match="has 2 numbers per image, but there are 3 classes"):
        SEVERAL_CLASSES.read(source_of([[0.0, 1.0]], FLOATS), ["a", "b", "c"])


def test_targets():
    targets, names = NUMBERS.read(source_of([1, 5], datasets.Value("int64"), "age"))
    assert targets.tolist() == [[1], [5]] and targets.dtype == np.float32 and names == ["age"]
    targets, names = NUMBERS.read(source_of([[1, 2], [3, 4]], FLOATS, "point"))
    assert targets.tolist() == [[1, 2], [3, 4]] and names == ["point 0", "point 1"]
    with pytest.raises(UserError, match="has 2 targets, but there are 1"):
        NUMBERS.read(source_of([[1, 2]], FLOATS), ["age"])


@pytest.mark.parametrize(
    "values, feature, problem_type, message",
    [
        ([1.0, None], datasets.Value("float32"), REGRESSION, "1 of 2 images of toys have no label"),
        ([1.0, float("nan")], datasets.Value("float32"), REGRESSION, "1 of 2 images of toys have no label"),
        ([[1.0], [1.0, 2.0]], FLOATS, REGRESSION, "has 1 to 2 numbers per image"),
        (["a"], datasets.Value("string"), REGRESSION, "regression needs numbers"),
        ([0], datasets.ClassLabel(names=["a"]), REGRESSION, "regression needs numbers"),
        ([0, 1], datasets.Value("int64"), MULTI_LABEL, "need lists of class numbers or names"),
        ([[0.0, 0.5]], FLOATS, MULTI_LABEL, "give --problem_type regression"),
        ([[0], None], INTS, MULTI_LABEL, "1 of 2 images of toys have no label"),
        ([[-1], [3, 2]], INTS, MULTI_LABEL, "holds -1 ... 3: class numbers are 0"),
        ([[], []], INTS, MULTI_LABEL, "no image of toys has a class"),
        ([[0.5]], FLOATS, SINGLE_LABEL, "classes, whole numbers or words are needed"),
        ([0.5], datasets.Value("float32"), SINGLE_LABEL, "classes, whole numbers or words are needed"),
    ],
)
def test_labels_that_do_not_work_are_one_line(values, feature, problem_type, message):
    with pytest.raises(UserError, match=message) as error:
        TASKS[problem_type].read(source_of(values, feature))
    assert "\n" not in str(error.value)


def test_the_column_of_lists_is_found():
    features = datasets.Features({"image": datasets.Image(), "kinds": NAMED, "id": datasets.Value("int64")})
    assert find_label_column(features, None) == "kinds"
    assert find_label_column(datasets.Features({"image": datasets.Image(), "labels": FLOATS}), None) == "labels"


def test_a_random_part():
    labels = np.zeros((100, 3))
    part = NUMBERS.part(labels, 0.1, seed=0)
    assert len(part) == 10 and len(set(part)) == 10 and (np.diff(part) > 0).all() and part.max() < 100
    assert not np.array_equal(part, SEVERAL_CLASSES.part(labels, 0.1, seed=1))
    assert len(NUMBERS.part(labels[:3], 0.01, 0)) == 1


# --- training ---


def test_a_new_head_begins_at_the_mean_of_the_targets(tmp_path):
    def make(checkpoint, names, task, means=(0.0, 0.0)):
        config = MAEConfig.from_pretrained(checkpoint) if checkpoint else MAEConfig(**SMALL)
        labels = torch.tensor(means) + torch.tensor([[-1.0], [1.0]])  # (2 images, targets)
        start = checkpoint and open_checkpoint(checkpoint)
        return task.new_model(config, start, names, 0, labels, print)

    first = make(None, ["a", "b"], NUMBERS, (3.0, -2.0))
    assert first.head.bias.tolist() == [3, -2] and first.config.problem_type == REGRESSION
    first.save_pretrained(tmp_path)
    kept = make(str(tmp_path), ["a", "b"], NUMBERS, (7.0, 7.0))
    assert kept.head.bias.tolist() == [3, -2] and torch.equal(kept.head.weight, first.head.weight)
    other = make(str(tmp_path), ["a", "b"], SEVERAL_CLASSES, (7.0, 7.0))  # as many, under the same names
    assert other.head.bias.tolist() == [0, 0] and other.config.problem_type == MULTI_LABEL
    single = make(str(tmp_path), ["only"], CLASSES)  # transformers refuses a single label with one class
    assert single.config.problem_type is None
    assert make(str(tmp_path), ["x", "y"], CLASSES).config.problem_type == SINGLE_LABEL


def test_lars_steps_slowly_on_the_bias_of_a_regression():
    """The paper's rate of 6.4 is beyond where a squared error converges."""
    scales = {}
    for problem_type in (None, SINGLE_LABEL, MULTI_LABEL, REGRESSION):
        model = net(3, problem_type=problem_type).freeze(0)
        optimizer = make_optimizer(model, OptimizerSettings(0.0, 0.9, 0.999, 1.0, "lars"))
        scales[problem_type] = {group["plain"]: group["lr_scale"] for group in optimizer.param_groups}
    assert scales.pop(REGRESSION) == {False: 1.0, True: 0.05}
    assert all(scale == {False: 1.0, True: 1.0} for scale in scales.values())


def test_what_is_otherwise_is_told():
    labels = torch.tensor([[100.0], [300.0]])
    assert CLASSES.notes(labels, 0.1, True, 0.1) == []
    fraction, mixing, smoothing, deviation = NUMBERS.notes(labels, 0.1, True, 0.1)
    assert "a random part" in fraction and "--mixup 0" in mixing and "label_smoothing 0.1" in smoothing
    assert "the targets deviate by 100" in deviation
    assert SEVERAL_CLASSES.notes(labels, 1.0, False, 0) == []


# --- mixing ---


@pytest.mark.parametrize("options", [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_labels_are_mixed_in_the_shares_of_the_images(options):
    """For labels of one class each the result is timm's own."""
    images, classes = torch.rand(6, 1, 8, 8), torch.tensor([0, 3, 1, 1, 2, 0])
    one, other = (Mix(0.0, **options, num_classes=4, device="cpu") for _ in range(2))
    for update in range(5):
        mixed, probabilities = one(images.clone(), classes, 7, update)
        mixed_too, labels = other(images.clone(), F.one_hot(classes, 4).float(), 7, update)
        assert torch.equal(mixed, mixed_too)
        torch.testing.assert_close(labels, probabilities)
    assert isinstance(one.mix, Mixup)


# --- metrics ---


def test_multi_label_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = (generator.random((200, 4)) < [0.5, 0.2, 0.7, 0.0]).astype(np.float32)  # the last class has no image
    scores = np.clip(0.5 * truth + generator.random((200, 4)) * 0.7, 0, 1).astype(np.float32)
    results = SEVERAL_CLASSES.results({"label": truth, "scores": scores, "loss": np.full(200, 0.25)}, 4)
    each = sklearn.metrics.average_precision_score(truth[:, :3], scores[:, :3], average=None)
    assert results["per_class_average_precision"][:3] == pytest.approx(each.tolist())
    assert results["per_class_average_precision"][3] is None
    assert results["mean_average_precision"] == pytest.approx(each.mean()) and results["loss"] == 0.25
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(truth, scores > 0.5, average=average, zero_division=0)
        assert results[f"f1_{average}"] == pytest.approx(expected)


def test_regression_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(50, 2)).astype(np.float32)
    prediction = truth + generator.normal(size=(50, 2)).astype(np.float32)
    results = NUMBERS.results({"label": truth, "prediction": prediction, "loss": np.ones(50)}, 2)
    assert results["mean_squared_error"] == pytest.approx(((truth - prediction) ** 2).mean(), rel=1e-5)
    assert results["mean_absolute_error"] == pytest.approx(np.abs(truth - prediction).mean(), rel=1e-5)
    assert results["r2"] == pytest.approx(sklearn.metrics.r2_score(truth, prediction), rel=1e-5)
    assert results["per_target_absolute_error"] == pytest.approx(np.abs(truth - prediction).mean(0), rel=1e-5)
    one = NUMBERS.results({"label": truth[:1, :1], "prediction": prediction[:1, :1], "loss": np.ones(1)}, 1)
    assert one["r2"] is None and "per_target_absolute_error" not in one


def test_the_best_epoch():
    good, bad = {"mean_squared_error": 0.1}, {"mean_squared_error": 30.0}
    assert NUMBERS.problem.score(good) > NUMBERS.problem.score(bad) > -float("inf")
    good, bad = {"mean_average_precision": 0.9}, {"mean_average_precision": 0.1}
    assert SEVERAL_CLASSES.problem.score(good) > SEVERAL_CLASSES.problem.score(bad)


def test_neighbours_average_their_labels():
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(40, 5, generator=generator), torch.rand(40, 2, generator=generator)
    queries = torch.randn(7, 5, generator=generator)
    truth = torch.rand(7, 2, generator=generator)
    sets = FrozenSet(train.numpy(), labels.numpy()), FrozenSet(queries.numpy(), truth.numpy())
    errors = knn_metrics(*sets, (3, 10), NUMBERS, temperature=0.1)
    similarity = F.normalize(queries, dim=1) @ F.normalize(train, dim=1).T
    for k in (3, 10):
        means = []
        for i in range(7):
            nearest = similarity[i].argsort(descending=True)[:k]
            means.append((similarity[i, nearest] / 0.1).softmax(0) @ labels[nearest])
        assert errors[k] == pytest.approx((torch.stack(means) - truth).square().mean().item(), rel=1e-4)


def test_linear_models():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 4))
    labels = np.stack([features[:, 0] > 0, features[:, 1] > 0.5, np.zeros(300)], 1).astype(np.float32)
    scores = SEVERAL_CLASSES.linear(features[:200], labels[:200], features[200:])
    assert scores.shape == (100, 3) and ((scores[:, :2] > 0.5) == labels[200:, :2]).mean() > 0.9
    targets = (features @ [[1.0], [2.0], [0.0], [-1.0]]).astype(np.float32)
    values = NUMBERS.linear(features[:200], targets[:200], features[200:])
    assert values.shape == (100, 1) and np.abs(values - targets[200:]).mean() < 0.3
