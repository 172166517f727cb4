"""Evaluation of frozen features."""

from collections.abc import Callable, Iterable

import torch


@torch.no_grad()
def extract_features(encode: Callable, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]):
    """(features ``(images, width)`` float32, labels ``(images,)``) on the CPU; `encode` maps pixel values to
    features."""
    features, labels = [], []
    for pixel_values, targets in batches:
        features.append(encode(pixel_values).float().cpu())
        labels.append(targets.cpu())
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Accuracy in 0..1 of weighted k-nearest neighbours (Wu et al., arXiv 1805.01978, Section 3.4): each of the `k`
    training images with the largest cosine similarity s votes with exp(s / temperature).

    Raises:
        ValueError: when there are fewer than `k` training images.
    """
    if k > len(train_features):
        raise ValueError(f"k={k} neighbours of {len(train_features)} training images: give a smaller k")
    bank = torch.nn.functional.normalize(train_features, dim=1)
    queries = torch.nn.functional.normalize(test_features, dim=1)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    correct = 0
    for start in range(0, len(queries), chunk):
        similarity, nearest = (queries[start : start + chunk] @ bank.T).topk(k, dim=1)
        weights = ((similarity - 1) / temperature).exp()  # the constant factor keeps exp in range
        votes = torch.zeros(len(weights), classes, device=weights.device)
        votes.scatter_add_(1, train_labels[nearest], weights)
        correct += (votes.argmax(1) == test_labels[start : start + chunk]).sum().item()
    return correct / len(queries)
