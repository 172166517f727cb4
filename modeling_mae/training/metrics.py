"""Evaluation: every image once over all processes, the classification metrics, and what frozen features hold."""

import warnings
from collections.abc import Callable, Iterator

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import Dataset

from .data import make_loader


@torch.no_grad()
def gather_over(
    accelerator: Accelerator,
    images: Dataset,
    batch_size: int,
    num_workers: int,
    compute: Callable[[dict], dict[str, torch.Tensor]],
) -> dict[str, np.ndarray]:
    """`compute(batch)` for all of `images`, dealt to the processes: arrays ``(images, ...)`` in order, on all.

    All processes make the same number of calls, as sharded models need; what fills the last ones up is dropped."""
    total, rank = len(images), accelerator.process_index
    each = -(-total // accelerator.num_processes)
    own = [min(rank * each + i, total - 1) for i in range(each)]
    batches = [own[first : first + batch_size] for first in range(0, each, batch_size)]
    parts: dict[str, list[torch.Tensor]] = {}
    loader = make_loader(images, [[(0, i) for i in batch] for batch in batches], num_workers)
    for batch, places in zip(loader, batches, strict=True):
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        found = {"place": torch.tensor(places, device=accelerator.device), **compute(batch)}
        for key, value in accelerator.gather(found).items():
            parts.setdefault(key, []).append(value.cpu())
    arrays = {key: torch.cat(values).numpy() for key, values in parts.items()}
    _, first = np.unique(arrays.pop("place"), return_index=True)
    return {key: values[first] for key, values in arrays.items()}


def predict(
    accelerator: Accelerator, model, images: Dataset, transform, batch_size: int, num_workers: int
) -> dict[str, np.ndarray]:
    """In eval mode: ``label``, ``loss`` (cross-entropy) and ``confidence`` ``(images,)``, ``top5 (images, at most 5)``
    classes, the likeliest first."""

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        logits = model(transform(batch)).logits.float()
        confidence, top = logits.softmax(-1).topk(min(5, logits.shape[-1]))
        loss = F.cross_entropy(logits, batch["labels"], reduction="none")
        return {"label": batch["labels"], "loss": loss, "confidence": confidence[:, 0], "top5": top}

    model.eval()
    return gather_over(accelerator, images, batch_size, num_workers, compute)


class ClassificationMetric(evaluate.Metric):
    """Top-1 and top-5 accuracy, accuracy of each class (None where the class has no image), confusion matrix (rows the
    true classes). `predictions` are the likeliest classes of each image, best first.

    Ours, because `evaluate.load` fetches a metric's code from the network."""

    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references, num_classes: int) -> dict:
        predictions, references = np.asarray(predictions), np.asarray(references)
        hits = predictions == references[:, None]  # (images, k)
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(confusion, (references, predictions[:, 0]), 1)
        counts, right = confusion.sum(1), confusion.diagonal()
        result = {"accuracy": float(hits[:, 0].mean())}
        if num_classes > 5:
            result["top5_accuracy"] = float(hits.any(1).mean())
        result["per_class_accuracy"] = [float(r / n) if n else None for r, n in zip(right, counts, strict=True)]
        result["confusion_matrix"] = confusion.tolist()
        return result


def classification_results(predictions: dict[str, np.ndarray], num_classes: int) -> dict:
    """What `ClassificationMetric` computes, and the mean ``loss``, of `predict`'s arrays."""
    metric = ClassificationMetric(keep_in_memory=True)
    found = metric.compute(predictions=predictions["top5"], references=predictions["label"], num_classes=num_classes)
    return {"loss": float(predictions["loss"].mean()), **found}


def knn_accuracies(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    ks: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> dict[int, float]:
    """Accuracy in 0..1 of weighted k-nearest neighbours for each of `ks` (Wu et al., arXiv 1805.01978, Section 3.4):
    each of the k training images with the largest cosine similarity s votes with exp(s / temperature).

    Features ``(images, width)``, labels ``(images,)``.

    Raises:
        ValueError: when there are fewer training images than the largest k.
    """
    if max(ks) > len(train_features):
        raise ValueError(f"k={max(ks)} neighbours of {len(train_features)} training images: give a smaller k")
    bank, bank_labels = F.normalize(train_features.to(device), dim=1), train_labels.to(device)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    correct = dict.fromkeys(ks, 0)
    for queries, targets in _chunks(F.normalize(test_features, dim=1), test_labels):
        similarity, nearest = (queries.to(device) @ bank.T).topk(max(ks), dim=1)  # (chunk, largest k)
        weights = ((similarity - 1) / temperature).exp()  # the constant factor keeps exp in range
        for k in ks:
            votes = torch.zeros(len(weights), classes, device=device)
            votes.scatter_add_(1, bank_labels[nearest[:, :k]], weights[:, :k])
            correct[k] += (votes.argmax(1).cpu() == targets).sum().item()
    return {k: count / len(test_labels) for k, count in correct.items()}


def knn_accuracy(*features_and_labels, k: int = 20, **options) -> float:
    """`knn_accuracies` for one k."""
    return knn_accuracies(*features_and_labels, ks=(k,), **options)[k]


def frozen_accuracies(
    accelerator: Accelerator,
    encode: Callable[[torch.Tensor], torch.Tensor],
    train: Dataset,
    evaluation: Dataset,
    transform,
    *,
    ks: tuple[int, ...],
    batch_size: int,
    num_workers: int,
    logistic: bool = False,
) -> dict:
    """What ``encode: (batch, channels, height, width) -> (batch, width)`` tells about the labels, on the main process:
    ``knn`` {k: accuracy}, of `ks` those that there are images for, and with `logistic` ``logistic_regression``."""

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        # The labels from the batch: an image that stands in for an unreadable one brings its own.
        return {"features": encode(transform(batch)).float(), "labels": batch["labels"]}

    arrays = []  # features and labels of the training images, then of those to evaluate on
    for images in (train, evaluation):
        found = gather_over(accelerator, images, batch_size, num_workers, compute)
        arrays += [found["features"], found["labels"]]
    if not accelerator.is_main_process:
        return {}
    ks = tuple(k for k in ks if k <= len(train))
    tensors = map(torch.from_numpy, arrays)
    results: dict = {"knn": knn_accuracies(*tensors, ks, device=accelerator.device) if ks else {}}
    if logistic:
        results["logistic_regression"] = logistic_accuracy(*arrays)
    return results


def _chunks(*tensors: torch.Tensor, size: int = 1024) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def logistic_accuracy(train_features, train_labels, test_features, test_labels, C: float = 0.1) -> float:
    """Accuracy in 0..1 of scikit-learn's logistic regression on standardised features, fitted to the training images
    as they are: a linear probe without augmentation, quick and without a learning rate to choose."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=300))
    with warnings.catch_warnings():
        # 300 iterations do for a comparison, in which all features get the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(train_features, train_labels)
    return classifier.score(test_features, test_labels)
