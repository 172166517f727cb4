"""Masked autoencoders (He et al., arXiv 2111.06377) as transformers models.

Importing the package registers its classes with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from .configuration_mae import MAEConfig
from .modeling_mae import (
    EvalNet,
    MAEForPreTraining,
    MAEForPreTrainingOutput,
    MAEModel,
    MAEModelOutput,
    MAEPreTrainedModel,
    mask_noise,
)


# exist_ok: a checkpoint loaded earlier with trust_remote_code=True has registered the type already.
AutoConfig.register(MAEConfig.model_type, MAEConfig, exist_ok=True)
AutoModel.register(MAEConfig, MAEModel, exist_ok=True)
AutoModelForPreTraining.register(MAEConfig, MAEForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(MAEConfig, EvalNet, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "EvalNet",
    "MAEConfig",
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEModel",
    "MAEModelOutput",
    "MAEPreTrainedModel",
    "mask_noise",
]
