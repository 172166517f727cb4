"""Registers the classes with transformers' Auto classes, and lets `from_pretrained` read other projects' checkpoints.
`import modeling_mae` runs this."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoVideoProcessor,
)
from transformers.utils import is_torchvision_available, is_vision_available, logging

from .configuration_mae import MAEConfig
from .masking_mae import mask_noise
from .modeling_mae import (
    EvalNet,
    MAEBackbone,
    MAEForPreTraining,
    MAEForPreTrainingOutput,
    MAEModel,
    MAEModelOutput,
    MAEPreTrainedModel,
)


logger = logging.get_logger(__name__)

# exist_ok: a checkpoint loaded earlier with trust_remote_code=True has registered the type already.
AutoConfig.register(MAEConfig.model_type, MAEConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, MAEModel),
    (AutoModelForPreTraining, MAEForPreTraining),
    (AutoModelForImageClassification, EvalNet),
    (AutoBackbone, MAEBackbone),
):
    auto_class.register(MAEConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)  # save_pretrained then copies the code
MAEConfig.register_for_auto_class()
if is_vision_available():  # Pillow; only the image processor needs it
    from .image_processing_mae import MAEImageProcessor

    # Registered under both names, because transformers warns if a backend falls back to another.
    backends: dict[str, type] = {"pil": MAEImageProcessor, "torchvision": MAEImageProcessor}
    AutoImageProcessor.register(MAEConfig, image_processor_classes=backends, exist_ok=True)
    MAEImageProcessor.register_for_auto_class()
if is_torchvision_available():
    # There is no video processor, but pipelines look for one, and would ask whether to run the checkpoint's code.
    AutoVideoProcessor.register(MAEConfig, None, exist_ok=True)


def _read_foreign(source, image_size, options):
    from . import interop  # imported late: only loading needs it, and it imports more of transformers

    foreign = interop.read(source, image_size, options)
    for note in foreign.notes if foreign is not None else ():
        logger.warning("%s: %s", source, note)
    return foreign


MAEPreTrainedModel.read_foreign = staticmethod(_read_foreign)

__all__ = [
    "EvalNet",
    "MAEBackbone",
    "MAEConfig",
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEModel",
    "MAEModelOutput",
    "MAEPreTrainedModel",
    "mask_noise",
]
if is_vision_available():
    __all__.append("MAEImageProcessor")
