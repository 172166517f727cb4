"""What frozen features tell about several labels an image, or about numbers: a linear model."""

import warnings

import numpy as np

from ..problems import MULTI_LABEL, PROBLEMS
from .problem_metrics import MultiLabelMetric, RegressionMetric


RIDGE_PENALTY = 10.0  # of the ridge regression, on standardised features: that of the logistic regression


def linear_predictions(
    problem_type: str,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    penalty: float,
    iterations: int,
) -> np.ndarray:
    """Scores or targets ``(test images, n)`` of scikit-learn's logistic regression, one for each class, or ridge
    regression, on standardised features."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if problem_type != MULTI_LABEL:
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=RIDGE_PENALTY)).fit(train_features, train_labels)
        return ridge.predict(test_features).reshape(len(test_features), -1)
    each = OneVsRestClassifier(LogisticRegression(C=penalty, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence, and classes that all training images have, or none
        classifier = make_pipeline(StandardScaler(), each).fit(train_features, train_labels.astype(int))
        if train_labels.shape[1] == 1:
            return classifier.predict_proba(test_features)[:, 1:]
        return classifier.predict_proba(test_features)


def metric_of(problem_type: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """The metric by which the problem chooses, of ``(images, n)``."""
    metric = MultiLabelMetric if problem_type == MULTI_LABEL else RegressionMetric
    results = metric(keep_in_memory=True).compute(predictions=predictions, references=labels)
    return results[PROBLEMS[problem_type].metric]
