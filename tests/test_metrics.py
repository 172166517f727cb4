import numpy as np
import pytest
import sklearn.metrics
import torch
from accelerate import Accelerator
from transformers.modeling_outputs import ImageClassifierOutput

from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.evaluation.classifier import evaluate_classifier
from modeling_mae.evaluation.metrics import predict_with
from modeling_mae.evaluation.reader import Reader
from modeling_mae.tasks import CLASSES, classes
from modeling_mae.tasks.sets import LabelledSets


def test_classification_equals_scikit_learns():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 8, 500)  # of 9 classes: the last is never seen
    scores = generator.random((500, 9))
    scores[np.arange(500), labels] += 0.4
    top5 = np.argsort(-scores, 1)[:, :5]
    results = CLASSES.results({"top5": top5, "label": labels, "loss": scores[:, 0]}, 9)
    assert results["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, top5[:, 0]))
    expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(9))
    assert results["top5_accuracy"] == pytest.approx(expected) and 0 < expected < 1
    confusion = sklearn.metrics.confusion_matrix(labels, top5[:, 0], labels=range(9))
    assert results["confusion_matrix"] == confusion.tolist()
    recall = sklearn.metrics.recall_score(labels, top5[:, 0], labels=range(8), average=None)
    assert results["per_class_accuracy"][:8] == pytest.approx(recall) and results["per_class_accuracy"][8] is None
    assert results["loss"] == pytest.approx(scores[:, 0].mean())
    few = CLASSES.results({"top5": top5[:, :3] % 3, "label": labels % 3, "loss": scores[:, 0]}, 3)
    assert "top5_accuracy" not in few


def imbalanced(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, labels) of 400 images, most of them of the first classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = (classes * torch.rand(400, generator=generator) ** 3).long()
    logits = torch.randn(400, classes, generator=generator)
    logits[torch.arange(400), labels] += 1
    return logits, labels


def results_of(logits, labels) -> dict:
    columns = {key: value.numpy() for key, value in CLASSES.columns_with_scores(logits, labels).items()}
    return CLASSES.results(columns, logits.shape[1])


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_imbalance_equals_scikit_learns(classes):
    logits, labels = imbalanced(classes)
    counts = labels.bincount(minlength=classes)
    assert counts.min() > 0 and counts.max() > 3 * counts.min()
    results, predictions = results_of(logits, labels), logits.argmax(1)
    assert results["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predictions))
    assert results["balanced_accuracy"] == pytest.approx(np.mean(results["per_class_accuracy"]))
    assert abs(results["balanced_accuracy"] - results["accuracy"]) > 0.005
    assert results["f1_macro"] == pytest.approx(sklearn.metrics.f1_score(labels, predictions, average="macro"))
    probabilities = logits.double().softmax(1)
    expected = sklearn.metrics.roc_auc_score(
        labels, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr", average="macro"
    )
    assert results["auroc"] == pytest.approx(expected) and 0.6 < expected < 0.95
    # By its meaning: how often an image of the class has a higher probability of it than an image of the rest.
    areas = []
    for i in range(classes):
        of_class, of_rest = probabilities[labels == i, i], probabilities[labels != i, i]
        areas.append((of_class[:, None] > of_rest).double().mean().item())
    assert results["auroc"] == pytest.approx(np.mean(areas))


def test_classes_without_images_are_in_no_mean():
    """Of 9 classes, 8 have images. What is taken for the last one is wrong for its own class all the same."""
    logits, labels = imbalanced(8)
    wide = torch.cat([logits, torch.randn(400, 1, generator=torch.Generator().manual_seed(1))], 1)
    results, predictions = results_of(wide, labels), wide.argmax(1).numpy()
    assert (predictions == 8).any()
    confusion = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(9))
    right, truth, taken = confusion.diagonal()[:8], confusion.sum(1)[:8], confusion.sum(0)[:8]
    assert results["balanced_accuracy"] == pytest.approx((right / truth).mean())
    assert results["f1_macro"] == pytest.approx((2 * right / (truth + taken)).mean())
    assert results["per_class_accuracy"][8] is None
    one = results_of(logits[labels == 0], labels[labels == 0])
    assert one["auroc"] is None and one["balanced_accuracy"] == one["accuracy"]
    broken = results_of(logits * float("nan"), labels)
    assert broken["auroc"] is None


def test_auroc_is_of_the_final_test_and_of_what_fits_into_memory(monkeypatch, capsys):
    logits, labels = imbalanced(3)
    sets = LabelledSets(None, labelled(labels.tolist()), ["a", "b", "c"], "x", None, "x", "test")

    class Model(torch.nn.Module):
        def forward(self, rows):
            return ImageClassifierOutput(logits=logits[rows])

    def evaluate(**options):
        positions = iter(torch.arange(400).split(50))
        reader = Reader(Accelerator(cpu=True), lambda batch: next(positions), 50, 0)
        return evaluate_classifier(reader, Model(), sets, **options)

    assert "auroc" not in evaluate()[0]
    results, predictions = evaluate(final=True)
    assert results["auroc"] == results_of(logits, labels)["auroc"] and predictions["scores"].shape == (400, 3)
    monkeypatch.setattr(classes, "SCORES_LIMIT", 400 * 3 * 4 - 1)
    assert "auroc" not in evaluate(final=True)[0]
    assert "no AUROC: its scores would take 0.0 GiB" in capsys.readouterr().out


def labelled(labels) -> MemoryImages:
    """Black images with these labels."""
    return MemoryImages(
        torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), (2, 2), labels=torch.tensor(list(labels))
    )


@pytest.mark.parametrize("batch_size", [1, 5, 13, 100])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_image_once_whatever_the_processes_and_the_batch(processes, batch_size):
    """The processes run one after another. The last run gets what `gather` makes of all of them together."""
    values_by_process: list[list[dict]] = []

    class Process:
        device, num_processes = torch.device("cpu"), processes

        def __init__(self, rank):
            self.process_index = rank

        def gather(self, values):
            values_by_process[self.process_index].append(values)
            return values

    def double(batch):
        return {"double": 2 * batch["labels"]}

    images = labelled(range(13))
    calls = []
    for rank in range(processes):
        values_by_process.append([])
        Reader(Process(rank), None, batch_size, 0).map(images, double)
        calls.append(len(values_by_process[rank]))
    assert len(set(calls)) == 1  # or a collective would wait for ever

    class AllTogether(Process):
        def gather(self, values):
            parts = next(steps)
            return {key: torch.cat([part[key] for part in parts]) for key in values}

    steps = iter(list(zip(*(list(values) for values in values_by_process), strict=True)))
    arrays = Reader(AllTogether(0), None, batch_size, 0).map(images, double)
    assert arrays["double"].tolist() == [2 * i for i in range(13)] and set(arrays) == {"double"}


def test_a_cpu_takes_fewer_images_at_a_time():
    sizes = []

    def count(batch):
        sizes.append(len(batch["labels"]))
        return {"labels": batch["labels"]}

    for batch_size in (256, 50):
        arrays = Reader(Accelerator(cpu=True), None, batch_size, 0).map(labelled(range(130)), count)
        assert arrays["labels"].tolist() == list(range(130))
    assert sizes == [64, 64, 2, 50, 50, 30]


@pytest.mark.parametrize("classes", [3, 7])
def test_predictions(classes):
    scores = torch.randn(11, classes, generator=torch.Generator().manual_seed(0))
    labels = np.arange(11) % classes

    class Model(torch.nn.Module):
        """Gives the scores of the images in order."""

        def forward(self, rows):
            assert not self.training and not torch.is_grad_enabled()
            return ImageClassifierOutput(logits=scores[rows])

    positions = iter(torch.arange(11).split(4))
    reader = Reader(Accelerator(cpu=True), lambda batch: next(positions), 4, 0)
    predictions = predict_with(reader, CLASSES, CLASSES.columns, Model(), labelled(labels.tolist()))
    probabilities = (scores.double().exp() / scores.double().exp().sum(1, keepdim=True)).numpy()
    assert predictions["label"].tolist() == labels.tolist()
    assert predictions["loss"] == pytest.approx(-np.log(probabilities[np.arange(11), labels]), abs=1e-5)
    assert predictions["confidence"] == pytest.approx(probabilities.max(1), abs=1e-5)
    assert predictions["top5"].tolist() == np.argsort(-probabilities, 1)[:, :5].tolist()
