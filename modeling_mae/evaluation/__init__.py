"""Evaluates checkpoints and applies them to any images: frozen features and classifiers, also from Python."""

from .extraction import Features, extract_features
from .neighbours import load_features, near_duplicates, nearest_neighbours, query_features
from .prediction import predict


__all__ = [
    "Features",
    "extract_features",
    "load_features",
    "near_duplicates",
    "nearest_neighbours",
    "predict",
    "query_features",
]
