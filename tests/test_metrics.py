import math

import pytest
import torch

from modeling_mae.training.metrics import extract_features, knn_accuracy


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
    assert knn_accuracy(train, labels, test, answers, k=7, chunk=10) == pytest.approx(correct / 31)


def test_a_near_neighbour_outvotes_two_far_ones():
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3) == 1
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3, temperature=1e3) == 0


def test_too_many_neighbours():
    with pytest.raises(ValueError, match="k=20 neighbours of 3 training images"):
        knn_accuracy(torch.randn(3, 2), torch.zeros(3).long(), torch.randn(1, 2), torch.zeros(1).long())


def test_extract_features():
    batches = [(torch.ones(2, 3), torch.tensor([0, 1])), (torch.zeros(1, 3), torch.tensor([2]))]
    features, labels = extract_features(lambda x: (x * 2).half(), batches)
    assert features.dtype == torch.float32 and features.tolist() == [[2.0] * 3] * 2 + [[0.0] * 3]
    assert labels.tolist() == [0, 1, 2]
