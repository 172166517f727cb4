import numpy as np
import pytest
import sklearn.metrics
import torch
from accelerate import Accelerator
from transformers.modeling_outputs import ImageClassifierOutput

from modeling_mae.data.images import MemoryImages
from modeling_mae.evaluation.metrics import classification_results, compute_over, predict


def test_classification_equals_scikit_learns():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 8, 500)  # of 9 classes: the last is never seen
    scores = generator.random((500, 9))
    scores[np.arange(500), labels] += 0.4
    top5 = np.argsort(-scores, 1)[:, :5]
    results = classification_results({"top5": top5, "label": labels, "loss": scores[:, 0]}, 9)
    assert results["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, top5[:, 0]))
    expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(9))
    assert results["top5_accuracy"] == pytest.approx(expected) and 0 < expected < 1
    confusion = sklearn.metrics.confusion_matrix(labels, top5[:, 0], labels=range(9))
    assert results["confusion_matrix"] == confusion.tolist()
    recall = sklearn.metrics.recall_score(labels, top5[:, 0], labels=range(8), average=None)
    assert results["per_class_accuracy"][:8] == pytest.approx(recall) and results["per_class_accuracy"][8] is None
    assert results["loss"] == pytest.approx(scores[:, 0].mean())
    few = classification_results({"top5": top5[:, :3] % 3, "label": labels % 3, "loss": scores[:, 0]}, 3)
    assert "top5_accuracy" not in few


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

    images = labelled(range(13))
    calls = []
    for rank in range(processes):
        values_by_process.append([])
        compute_over(Process(rank), images, batch_size, 0, lambda batch: {"double": 2 * batch["labels"]})
        calls.append(len(values_by_process[rank]))
    assert len(set(calls)) == 1  # or a collective would wait for ever

    class AllTogether(Process):
        def gather(self, values):
            parts = next(steps)
            return {key: torch.cat([part[key] for part in parts]) for key in values}

    steps = iter(list(zip(*(list(values) for values in values_by_process), strict=True)))
    arrays = compute_over(AllTogether(0), images, batch_size, 0, lambda batch: {"double": 2 * batch["labels"]})
    assert arrays["double"].tolist() == [2 * i for i in range(13)] and set(arrays) == {"double"}


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
    predictions = predict(
        Accelerator(cpu=True), Model(), labelled(labels.tolist()), lambda batch: next(positions), 4, 0
    )
    probabilities = (scores.double().exp() / scores.double().exp().sum(1, keepdim=True)).numpy()
    assert predictions["label"].tolist() == labels.tolist()
    assert predictions["loss"] == pytest.approx(-np.log(probabilities[np.arange(11), labels]), abs=1e-5)
    assert predictions["confidence"] == pytest.approx(probabilities.max(1), abs=1e-5)
    assert predictions["top5"].tolist() == np.argsort(-probabilities, 1)[:, :5].tolist()
