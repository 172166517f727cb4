"""What checkpoints are worth and what they give: frozen features, classifiers, and both of any images from Python."""

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
