"""Reads and writes other projects' checkpoints.

`modeling_mae.checkpoint.open_checkpoint` and ``from_pretrained`` of our models read them, `mae convert` writes them.

It reads the official `.pth` files (encoder, with decoder, fine-tuned, probed), transformers' `ViTMAE*` and `ViT*`
checkpoints, timm's vision transformers, and CrossMAE's and MAE-code's files. It writes transformers'
ViTMAEForPreTraining, ViTModel and ViTForImageClassification, timm's folders, ONNX graphs and torch.export programs.
"""

from .layouts import LAYOUTS, fill_vit, official_from_vit, to_official, to_ours
from .read import load_tensors, read
from .state_dicts import Foreign, from_state_dict
from .write import FORMATS, export, fold_classifier, save_timm, to_transformers, write_model


__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Foreign",
    "export",
    "fill_vit",
    "fold_classifier",
    "from_state_dict",
    "load_tensors",
    "official_from_vit",
    "read",
    "save_timm",
    "to_official",
    "to_ours",
    "to_transformers",
    "write_model",
]
