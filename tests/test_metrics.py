import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch.utils.data import Dataset

from modeling_mae.training.metrics import classification_results, gather_over, knn_accuracies, knn_accuracy


def test_knn_equals_a_loop():
    torch.manual_seed(0)
    train, labels = torch.randn(60, 5), torch.randint(0, 4, (60,))
    test, answers = torch.randn(31, 5), torch.randint(0, 4, (31,))
    correct = 0
    for query, answer in zip(test, answers.tolist(), strict=True):
        scores = sorted(
            ((float(query @ x / (query.norm() * x.norm())), int(y)) for x, y in zip(train, labels, strict=True)),
            reverse=True,
        )
        votes = [0.0] * 4
        for similarity, label in scores[:7]:
            votes[label] += math.exp(similarity / 0.07)
        correct += votes.index(max(votes)) == answer
    assert knn_accuracy(train, labels, test, answers, k=7) == pytest.approx(correct / 31)


def test_a_near_neighbour_outvotes_two_far_ones():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3) == 1
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3, temperature=1e3) == 0


def test_too_many_neighbours():
    with pytest.raises(ValueError, match="k=20 neighbours of 3 training images"):
        knn_accuracy(torch.randn(3, 2), torch.zeros(3).long(), torch.randn(1, 2), torch.zeros(1).long())


def test_several_k_at_once_equal_each_alone():
    torch.manual_seed(0)
    data = (torch.randn(60, 5), torch.randint(0, 4, (60,)), torch.randn(31, 5), torch.randint(0, 4, (31,)))
    assert knn_accuracies(*data, ks=(3, 20)) == {k: knn_accuracy(*data, k=k) for k in (3, 20)}


def test_classification_equals_scikit_learns():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 8, 500)  # of 9 classes: the last is never seen
    scores = generator.random((500, 9))
    scores[np.arange(500), labels] += 0.4
    top5 = np.argsort(-scores, 1)[:, :5]
    found = classification_results({"top5": top5, "label": labels, "loss": scores[:, 0]}, 9)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, top5[:, 0]))
    expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(9))
    assert found["top5_accuracy"] == pytest.approx(expected) and 0 < expected < 1
    confusion = sklearn.metrics.confusion_matrix(labels, top5[:, 0], labels=range(9))
    assert found["confusion_matrix"] == confusion.tolist()
    recall = sklearn.metrics.recall_score(labels, top5[:, 0], labels=range(8), average=None)
    assert found["per_class_accuracy"][:8] == pytest.approx(recall) and found["per_class_accuracy"][8] is None
    assert found["loss"] == pytest.approx(scores[:, 0].mean())
    few = classification_results({"top5": top5[:, :3] % 3, "label": labels % 3, "loss": scores[:, 0]}, 3)
    assert "top5_accuracy" not in few


class Numbers(Dataset):
    in_memory = True

    def __len__(self):
        return 13

    def __getitems__(self, pairs):
        return {"labels": torch.tensor([index for _, index in pairs])}


@pytest.mark.parametrize("batch_size", [1, 5, 13, 100])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_image_once_whatever_the_processes_and_the_batch(monkeypatch, processes, batch_size):
    """The processes one after another, each with what the others gave so far: what `gather` makes of them together."""
    gathered: list[list[dict]] = []

    class Process:
        device, num_processes = torch.device("cpu"), processes

        def __init__(self, rank):
            self.process_index = rank

        def gather(self, found):
            gathered[self.process_index].append(found)
            return found

    calls = []
    for rank in range(processes):
        gathered.append([])
        gather_over(Process(rank), Numbers(), batch_size, 0, lambda batch: {"double": 2 * batch["labels"]})
        calls.append(len(gathered[rank]))
    assert len(set(calls)) == 1  # or a collective would wait for ever

    class Together(Process):
        def gather(self, found):
            parts = next(steps)
            return {key: torch.cat([part[key] for part in parts]) for key in found}

    steps = iter(list(zip(*(list(parts) for parts in gathered), strict=True)))
    result = gather_over(Together(0), Numbers(), batch_size, 0, lambda batch: {"double": 2 * batch["labels"]})
    assert result["double"].tolist() == [2 * i for i in range(13)]
