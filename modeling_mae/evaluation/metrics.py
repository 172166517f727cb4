"""Every image once over all processes, predictions, and the metrics of a classifier of one class an image."""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from ..data.serve.images import Images
from ..training.sharded import share_buffers


@torch.no_grad()
def compute_over(
    accelerator: Accelerator,
    images: Images,
    batch_size: int,
    num_workers: int,
    compute: Callable[[dict], dict[str, torch.Tensor]],
) -> dict[str, np.ndarray]:
    """`compute(batch)` for all `images`, dealt to the processes: arrays ``(images, ...)`` in order, on every process.

    All processes make the same number of calls, as sharded models need. What fills up the last ones is dropped.
    """
    total, rank = len(images), accelerator.process_index
    share = -(-total // accelerator.num_processes)
    indices = [min(rank * share + i, total - 1) for i in range(share)]
    batches = [(0, indices[first : first + batch_size]) for first in range(0, share, batch_size)]
    arrays: dict[str, torch.Tensor] = {}
    for batch, (_, batch_indices) in zip(images.loader(batches, num_workers), batches, strict=True):
        batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()}
        values = {"index": torch.tensor(batch_indices, device=accelerator.device), **compute(batch)}
        values = {key: value.cpu() for key, value in accelerator.gather(values).items()}
        places, first_of_each = np.unique(values.pop("index"), return_index=True)
        for key, value in values.items():
            if key not in arrays:
                arrays[key] = torch.empty(total, *value.shape[1:], dtype=value.dtype)
            arrays[key][places] = value[first_of_each]
    return {key: array.numpy() for key, array in arrays.items()}


def classify(model, transform: Callable[[dict], torch.Tensor], batch: dict):
    """The output of the classifier `model` for a batch of images, or of features that were computed once."""
    return model(features=batch["features"]) if "features" in batch else model(transform(batch))


def predict(
    accelerator: Accelerator, model, images: Images, transform, batch_size: int, num_workers: int
) -> dict[str, np.ndarray]:
    """Predictions in eval mode of one class an image, as `top_classes` gives them, ``(images, ...)``."""
    return predict_with(top_classes, accelerator, model, images, transform, batch_size, num_workers)


def predict_with(
    columns: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    accelerator: Accelerator,
    model,
    images: Images,
    transform,
    batch_size: int,
    num_workers: int,
) -> dict[str, np.ndarray]:
    """`columns(logits, labels)` of all `images` in eval mode: arrays ``(images, ...)``."""

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        return columns(classify(model, transform, batch).logits.float(), batch["labels"])

    model.eval()
    share_buffers(accelerator, model)
    return compute_over(accelerator, images, batch_size, num_workers, compute)


def top_classes(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of ``logits (batch, classes)`` and class numbers ``(batch,)``: ``label``, ``loss`` (cross-entropy) and
    ``confidence`` ``(batch,)``; ``top5 (batch, at most 5)`` classes, the likeliest first."""
    confidence, top = logits.softmax(-1).topk(min(5, logits.shape[-1]))
    loss = F.cross_entropy(logits, labels, reduction="none")
    return {"label": labels, "loss": loss, "confidence": confidence[:, 0], "top5": top}


def class_scores(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `top_classes`, and ``scores (batch, classes)``, the logarithms of the probabilities, which differ also
    where the probabilities are 1 in float32."""
    return {**top_classes(logits, labels), "scores": logits.log_softmax(-1)}


class ClassificationMetric(evaluate.Metric):
    """Top-1 and top-5 accuracy, accuracy of each class (None for a class without images), and the confusion matrix
    (rows are the true classes). `predictions` are the likeliest classes of each image, best first.

    It is ours because `evaluate.load` fetches a metric's code from the network."""

    def _info(self):
        return _classes_info(self.__doc__, datasets.Sequence(datasets.Value("int64")))

    def _compute(self, predictions, references, num_classes: int) -> dict:
        predictions, references = np.asarray(predictions), np.asarray(references)
        hits = predictions == references[:, None]  # (images, k)
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(confusion, (references, predictions[:, 0]), 1)
        counts, right = confusion.sum(1), confusion.diagonal()
        results = {"accuracy": float(hits[:, 0].mean())}
        if num_classes > 5:
            results["top5_accuracy"] = float(hits.any(1).mean())
        results["per_class_accuracy"] = [float(r / n) if n else None for r, n in zip(right, counts, strict=True)]
        results["confusion_matrix"] = confusion.tolist()
        return results


class ImbalanceMetric(evaluate.Metric):
    """Balanced accuracy and macro F1; with `scores` also ``auroc``, the area under the ROC curve of each class against
    the rest. Each is a mean over the classes, in which rare classes count as much as frequent ones. A class without
    images is in none of the means. AUROC is None where one class has all the images, or a score is no number.

    `predictions` are the likeliest classes, `scores` ``(images, classes)``. The scores do not go through `evaluate`'s
    tables, which would copy them several times."""

    def _info(self):
        return _classes_info(self.__doc__, datasets.Value("int64"))

    def _compute(self, predictions, references, scores: np.ndarray | None = None) -> dict:
        from sklearn.metrics import f1_score, recall_score, roc_auc_score

        predictions, references = np.asarray(predictions), np.asarray(references)
        means = {"labels": np.unique(references), "average": "macro", "zero_division": 0}
        results = {
            "balanced_accuracy": float(recall_score(references, predictions, **means)),
            "f1_macro": float(f1_score(references, predictions, **means)),
        }
        if scores is not None:
            possible = len(means["labels"]) > 1 and not np.isnan(scores).any()
            areas = [roc_auc_score(references == i, scores[:, i]) for i in means["labels"]] if possible else []
            results["auroc"] = float(np.mean(areas)) if areas else None
        return results


def _classes_info(description: str, predictions) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": predictions, "references": datasets.Value("int64")})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=features)


def classification_results(predictions: dict[str, np.ndarray], num_classes: int) -> dict:
    """What `ClassificationMetric` and `ImbalanceMetric` compute from the columns of `top_classes` or `class_scores`,
    and the mean ``loss``. AUROC needs the scores."""
    top, labels = predictions["top5"], predictions["label"]
    metric, imbalance = ClassificationMetric(keep_in_memory=True), ImbalanceMetric(keep_in_memory=True)
    results = metric.compute(predictions=top, references=labels, num_classes=num_classes)
    results |= imbalance.compute(predictions=top[:, 0], references=labels, scores=predictions.get("scores"))
    return {"loss": float(predictions["loss"].mean()), **results}
