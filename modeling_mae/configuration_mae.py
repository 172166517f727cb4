"""Configuration of the masked autoencoder: all numbers of the architecture and of the masking."""

import difflib
import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import BackboneConfigMixin, PretrainedConfig
from transformers.activations import ACT2FN


# No model is this large. Such a number is a typo, and building the model would fill the memory or never end.
MAX_PATCHES = 2**20
MAX_LAYERS = 1000
MAX_LABELS = 10**7
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")  # transformers' names


@strict(accept_kwargs=True)
class MAEConfig(BackboneConfigMixin, PretrainedConfig):
    """Architecture, masking and loss of a masked autoencoder. The defaults are ViT-B/16 at 224 with the decoder of the
    paper's Table 1 (8 blocks, 512 wide). Field names are those of transformers' ``ViTMAEConfig``.

    Args:
        image_size, patch_size: pixels, an int or ``(height, width)``. The image is a multiple of the patch.
        mask_ratio: the share of masked patches, inside (0, 1). The paper's Figure 5 favours 0.75.
        mask_type: ``random``, ``block`` or ``grid`` (Table 1f).
        norm_pix_loss: predict each patch normalised by its own mean and deviation (Table 1d).
        position_embedding: ``sincos`` (2-D, fixed; the paper's) or ``learned``.
        pooling: how tokens become ``pooler_output``, which the classifier sees. ``mean``: the mean of the patch
            tokens. ``cls``: the class token. ``flatten``: all patch tokens in a row, patches x width values, for one
            image size only. ``attention``: learned queries attend to the patch tokens (see `MAEAttentionPooling`).
            Labels train the queries, so MAEForPreTraining has none.
        num_pooling_queries, num_pooling_heads: for ``attention``. Each query pools its own part of the width. With
            several heads, each query attends once per head, by that head's part of the tokens' width.
        head_norm: the norm before EvalNet's head. ``layer``: a LayerNorm after the pooling instead of the encoder's
            final one, as the official code fine-tunes. ``attention`` keeps both, because its queries attend to
            normalised tokens. ``batch``: a BatchNorm without affine parameters (linear probing, Section A.1).
            ``none``: no norm.
        head_initializer_range: the deviation of the initial weights of EvalNet's head. In the official code 2e-5 for
            fine-tuning and 0.01 for linear probing.
        drop_path_rate: the rate of the last encoder block in training. It grows linearly over the blocks from 0 (Table
            9).
        label_smoothing: smoothing of EvalNet's cross-entropy in training (Table 9). Other losses are not smoothed.
        problem_type: chooses EvalNet's loss as in transformers' heads: ``single_label_classification``,
            ``multi_label_classification`` or ``regression``. By default the first, whose labels may also be
            probabilities ``(batch, classes)`` from mixup.
        decoder_type: ``self`` is the paper's decoder: all patches attend to each other. ``cross`` is CrossMAE's (arXiv
            2401.14391): masked patches attend to the encoder's tokens alone.
        decoder_reads: what the cross decoder reads. ``blocks``: each of its blocks reads its own learned weighting of
            the outputs of all encoder blocks. ``stages``: the weighting includes the embedded patches. ``last``: the
            encoder's output.
        prediction_ratio: the share of all patches that is predicted, above 0 and at most `mask_ratio`. Unset predicts
            every masked patch. CrossMAE uses 0.25.
        uniformity_weight: the weight of U-MAE's uniformity term (arXiv 2210.08344) in the loss of MAEForPreTraining, 0
            or more. The term pushes the features of the images in a batch apart. U-MAE uses 0.01.
        out_features, out_indices: the stages whose feature maps MAEBackbone returns, by name (``stem``, ``stage1`` ...
            ``stage<depth>``) or number. By default only the last block.
        reshape_hidden_states: whether MAEBackbone returns maps ``(batch, width, rows, columns)``, or tokens ``(batch,
            1 + patches, width)`` as DPT and DepthAnything read them.

    Raises:
        ValueError: the values do not work together. The message names them.
    """

    model_type = "mae"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    mask_ratio: float | int = 0.75
    mask_type: Literal["random", "block", "grid"] = "random"
    norm_pix_loss: bool = True
    position_embedding: Literal["sincos", "learned"] = "sincos"
    pooling: Literal["mean", "cls", "flatten", "attention"] = "mean"
    num_pooling_queries: int = 32
    num_pooling_heads: int = 1
    head_norm: Literal["layer", "batch", "none"] = "none"
    head_initializer_range: float = 2e-5
    drop_path_rate: float | int = 0.0
    label_smoothing: float | int = 0.0
    prediction_ratio: float | int | None = None
    uniformity_weight: float | int = 0.0
    decoder_type: Literal["self", "cross"] = "self"
    decoder_reads: Literal["blocks", "stages", "last"] = "blocks"
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    reshape_hidden_states: bool = True
    # Named as in transformers' backbone configs. Given and saved as out_features and out_indices.
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and not (isinstance(num_labels, int) and 0 < num_labels <= MAX_LABELS):
            # Checked before transformers makes a name for each label.
            raise ValueError(f"num_labels={num_labels!r} is not a whole number in 1 ... {MAX_LABELS}")
        # One checkpoint serves several Auto classes, but transformers records only one when it saves: name all.
        kwargs.setdefault(
            "auto_map",
            {
                "AutoConfig": "configuration_mae.MAEConfig",
                "AutoModel": "modeling_mae.MAEModel",
                "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
                "AutoModelForImageClassification": "modeling_mae.EvalNet",
                "AutoBackbone": "modeling_mae.MAEBackbone",
            },
        )
        features, indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        super().__post_init__(**kwargs)
        if features is not None or indices is not None:  # MAEBackbone sets the default by the depth
            self.set_output_features_output_indices(out_features=features, out_indices=indices)
        # Called here as well, because transformers wraps the ValueError of its own calls in another class.
        self.validate_sizes()
        self.validate_patches()
        self.validate_widths()
        self.validate_numbers()
        self.validate_masking()
        self.validate_absent()
        self.validate_classifier()

    @property
    def stage_names(self) -> list[str]:
        """The stages of MAEBackbone: the embedded patches, then every block."""
        return ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]

    def to_dict(self) -> dict:
        output = super().to_dict()
        if output["out_indices"] in (None, [self.num_hidden_layers]):
            # A saved default would contradict a depth that is overridden when the checkpoint is loaded.
            del output["out_features"], output["out_indices"]
        return output

    @property
    def image_height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return pair(self.image_size, "image_size")

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return pair(self.patch_size, "patch_size")

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        (height, width), (patch_height, patch_width) = self.image_height_width, self.patch_height_width
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def patch_dim(self) -> int:
        """Values in one patch: patch height x patch width x channels."""
        patch_height, patch_width = self.patch_height_width
        return patch_height * patch_width * self.num_channels

    # transformers calls every validate_* method when a config is made and before it is saved.
    def validate_sizes(self):
        for name in (
            "hidden_size num_hidden_layers num_attention_heads intermediate_size num_channels decoder_hidden_size "
            "decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size num_pooling_queries "
            "num_pooling_heads"
        ).split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_hidden_layers", "decoder_num_hidden_layers"):
            if getattr(self, name) > MAX_LAYERS:
                raise ValueError(f"{name}={getattr(self, name)} is more than {MAX_LAYERS}: give fewer layers")

    def validate_patches(self):
        height, width = self.image_height_width
        patch_height, patch_width = self.patch_height_width
        if min(height, width, patch_height, patch_width) < 1:
            raise ValueError(f"image_size={self.image_size} and patch_size={self.patch_size} must be at least 1")
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"image_size={height}x{width} is not a multiple of patch_size={patch_height}x{patch_width}; "
                f"{-(-height // patch_height) * patch_height}x{-(-width // patch_width) * patch_width} would be"
            )
        if self.num_patches > MAX_PATCHES:
            raise ValueError(
                f"image_size={height}x{width} has {self.num_patches:,} patches of patch_size={patch_height}x"
                f"{patch_width}, more than {MAX_PATCHES:,}: give smaller images or larger patches"
            )

    def validate_widths(self):
        for prefix in ("", "decoder_"):
            width = getattr(self, f"{prefix}hidden_size")
            heads = getattr(self, f"{prefix}num_attention_heads")
            if width % heads:
                raise ValueError(f"{prefix}num_attention_heads={heads} does not divide {prefix}hidden_size={width}")
            if self.position_embedding == "sincos" and width % 4:
                raise ValueError(
                    f"{prefix}hidden_size={width} is not a multiple of 4, which 2-D sin-cos positions need; "
                    "change it or set position_embedding='learned'"
                )
        parts = self.num_pooling_queries * self.num_pooling_heads
        if self.pooling == "attention" and self.hidden_size % parts:
            raise ValueError(
                f"pooling='attention': num_pooling_queries={self.num_pooling_queries} times num_pooling_heads="
                f"{self.num_pooling_heads} does not divide hidden_size={self.hidden_size}; "
                f"num_pooling_queries={math.gcd(self.hidden_size, self.num_pooling_queries)} with "
                "num_pooling_heads=1 would"
            )

    def validate_masking(self):
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} is outside (0, 1)")
        if self.prediction_ratio is not None and not 0 < self.prediction_ratio <= self.mask_ratio:
            raise ValueError(
                f"prediction_ratio={self.prediction_ratio} is outside (0, mask_ratio={self.mask_ratio}]: only masked "
                "patches are predicted; leave it unset for all of them"
            )
        if not 0 <= self.uniformity_weight < math.inf:
            raise ValueError(f"uniformity_weight={self.uniformity_weight} is not a weight: give a number, 0 or more")

    def validate_numbers(self):
        for name in ("initializer_range", "head_initializer_range"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is not a deviation: give a number, 0 or more")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be above 0 and finite, as 1e-6")
        if self.hidden_act not in ACT2FN:
            near = difflib.get_close_matches(self.hidden_act, ACT2FN, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "'gelu' is the paper's"
            raise ValueError(f"hidden_act={self.hidden_act!r} is not one of transformers' activations: {hint}")

    def validate_absent(self):
        if self.chunk_size_feed_forward:
            raise ValueError(
                f"chunk_size_feed_forward={self.chunk_size_feed_forward}: MLPs cannot be chunked; gradient "
                "checkpointing saves more"
            )

    def validate_classifier(self):
        for name in ("drop_path_rate", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside [0, 1)")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type={self.problem_type!r} is not one of {', '.join(PROBLEM_TYPES)}")
        if self.pooling == "flatten" and self.head_norm == "layer":
            raise ValueError("head_norm='layer' is for pooling='mean' or 'cls', not 'flatten': set 'none' or 'batch'")


def pair(size, name: str) -> tuple[int, int]:
    """(height, width) of a number or a pair."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"{name}={size} is neither a number nor a (height, width) pair")
    return int(size[0]), int(size[1])


__all__ = ["MAEConfig"]
