"""Other projects' checkpoints, in and out.

``from_pretrained`` of our models reads them too. The command is
`python -m modeling_mae.interop SOURCE TARGET [--to FORMAT] [--set FIELD=VALUE ...]`.

Read are the official `.pth` files (encoder, with decoder, fine-tuned, probed), transformers' `ViTMAE*` and `ViT*`
checkpoints, timm's vision transformers, and CrossMAE's and MAE-code's files. Written are transformers'
ViTMAEForPreTraining, ViTModel and ViTForImageClassification, timm's folders, ONNX graphs and torch.export programs.
"""

from .conversion import FORMATS, convert
from .layouts import LAYOUTS, fill_vit, official_from_vit, to_official, to_ours
from .read import load_tensors, read
from .state_dicts import Foreign, from_state_dict
from .write import export, fold_classifier, save_timm, to_transformers


__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Foreign",
    "convert",
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
]
