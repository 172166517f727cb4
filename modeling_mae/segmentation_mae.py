"""Semantic segmentation: the encoder and a head that gives every pixel a class."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from .configuration_mae import MAEConfig
from .modeling_mae import MAEHead, MAEModel, MAETunedModel


CONV_STD = 0.02  # of new convolutions
CHANNELS = {"multiscale": 256, "upernet": 512}  # inside a head; UperNet's are the published ones
AUXILIARY_CHANNELS = 256  # of UperNet's second head, which trains with it and is not used afterwards
AUXILIARY_WEIGHT = 0.4  # of that head's loss
DICE_SMOOTHING = 1.0  # pixels, so that a class without any has no loss of its own


class MAELinearSegmenter(nn.Module):
    """A BatchNorm and a linear layer for each patch."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        assert config.num_labels is not None
        self.norm = nn.BatchNorm1d(config.hidden_size, affine=False, eps=1e-6)
        self.classifier = MAEHead(config.hidden_size, config.num_labels)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, None]:
        """``(batch, width, rows, columns)``, the last of the `maps` -> ``(batch, labels, rows, columns)``."""
        batch, _, rows, columns = maps[-1].shape
        tokens = self.norm(maps[-1].movedim(1, -1).flatten(0, 2))  # (batch * patches, width)
        return self.classifier(tokens).view(batch, rows, columns, -1).movedim(-1, 1), None


class MAEMultiscaleSegmenter(nn.Module):
    """Joins four blocks, then doubles height and width twice: for things that are thinner than a patch."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        width, channels = config.hidden_size, CHANNELS["multiscale"]
        assert config.num_labels is not None
        self.joined = nn.Sequential(nn.Conv2d(4 * width, channels, 1), nn.BatchNorm2d(channels), nn.GELU())
        self.doubled = nn.Sequential(*(_doubling(channels, channels // 2), _doubling(channels // 2, channels // 4)))
        self.classifier = nn.Conv2d(channels // 4, config.num_labels, 1)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, None]:
        """Four ``(batch, width, rows, columns)`` -> ``(batch, labels, 4 * rows, 4 * columns)``."""
        return self.classifier(self.doubled(self.joined(torch.cat(maps, 1)))), None


class MAEUperNetSegmenter(nn.Module):
    """transformers' UperNet (arXiv 1807.10221) on four blocks, brought to 4, 2, 1 and 1/2 times the grid of the
    patches, as published comparisons of vision transformers have it."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        # Late: no other head needs these.
        from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

        width = config.hidden_size
        # transformers exports UperNet's heads with a backbone alone. The smallest one of this width makes them.
        backbone: Any = ResNetConfig(hidden_sizes=[width] * 4, depths=[1] * 4, out_indices=[1, 2, 3, 4])  # type: ignore[call-arg]
        settings = UperNetConfig(
            backbone_config=backbone,
            hidden_size=CHANNELS["upernet"],
            num_labels=config.num_labels,  # type: ignore[call-arg]
            auxiliary_in_channels=width,
            auxiliary_channels=AUXILIARY_CHANNELS,
        )
        upernet = UperNetForSemanticSegmentation(settings)
        self.larger = nn.ModuleList(
            [
                nn.Sequential(_doubling(width, width), nn.ConvTranspose2d(width, width, 2, 2)),
                nn.ConvTranspose2d(width, width, 2, 2),
            ]
        )
        self.head, self.auxiliary = cast(nn.Module, upernet.decode_head), cast(nn.Module, upernet.auxiliary_head)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Four ``(batch, width, rows, columns)`` -> ``(batch, labels, 4 * rows, 4 * columns)``; while training also
        the second head's ``(batch, labels, rows, columns)``."""
        larger = [double(one) for double, one in zip(self.larger, maps[:2], strict=True)]
        smaller = F.max_pool2d(maps[3], 2, ceil_mode=True)
        pyramid = [*larger, maps[2], smaller]
        return self.head(pyramid), self.auxiliary(pyramid) if self.training else None


def _doubling(inputs: int, outputs: int) -> nn.Sequential:
    """``(batch, inputs, height, width)`` -> ``(batch, outputs, 2 * height, 2 * width)``."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, 2), nn.BatchNorm2d(outputs), nn.GELU())


SEGMENTERS = {"linear": MAELinearSegmenter, "multiscale": MAEMultiscaleSegmenter, "upernet": MAEUperNetSegmenter}


class MAEForSemanticSegmentation(MAETunedModel):
    """The encoder and a head for a class of each pixel, by `config.segmentation_head`.

    ``linear``: BatchNorm and one linear layer on the patches of the last block. ``multiscale``: four blocks and two
    learned upsamplings. ``upernet``: UperNet, as published comparisons use it. Whatever the head, its logits are
    brought to the image's size bilinearly. Images of any size are taken: positions are interpolated, and a size that
    the patch does not divide is padded with zeros, which are the mean colour, at the bottom and on the right.

    `MAEForSemanticSegmentation.from_pretrained(<pre-trained checkpoint>, num_labels=...)` takes the encoder.
    """

    _keys_to_ignore_on_load_unexpected = r"^decoder\. ^head(_norm)?\. ^(mae\.)?pooler\.".split()
    new_weights = ("segmenter.",)

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.mae = MAEModel(config, add_pooling_layer=False)
        self.segmenter = SEGMENTERS[config.segmentation_head](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.normal_(module.weight, std=CONV_STD)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @torch.no_grad()
    def reset_head(self) -> None:
        """Give the head its initial values, for classes other than the checkpoint's."""
        self.segmenter = SEGMENTERS[self.config.segmentation_head](self.config).to(self.device)
        self.segmenter.apply(self._init_weights)

    def new_modules(self) -> list[nn.Module]:
        return [self.segmenter]

    @property
    def read_blocks(self) -> list[int]:
        """The blocks that the head reads, counted from 1: the last, or four of them, of 12 the blocks 4, 6, 8 and 12
        as in the official segmentation of the paper."""
        depth = self.config.num_hidden_layers
        if self.config.segmentation_head == "linear":
            return [depth]
        return [max(1, round(depth * part)) for part in (1 / 3, 1 / 2, 2 / 3, 1)]

    @property
    def frozen_size(self) -> int:
        """How many numbers `frozen_features` gives for an image of the configured size."""
        return len(self.read_blocks) * self.config.num_patches * self.config.hidden_size

    def frozen_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What a probe (`freeze(0)`) leaves as it is: ``(batch, blocks, patches, width)``, the patches of the blocks
        that the head reads, after the encoder's final norm. `forward` takes them in place of the images, so that those
        of images that do not change can be computed once.

        Raises:
            ValueError: the patch does not divide the images.
        """
        encoded = self.mae(pixel_values, output_hidden_states=True, return_dict=True)
        return torch.stack([self.mae.layernorm(encoded.hidden_states[i])[:, 1:] for i in self.read_blocks], 1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        """Classify the pixels of ``pixel_values (batch, channels, height, width)``, or of images of the configured
        size by `features`, as `frozen_features` gives them: ``logits (batch, labels, height, width)``. With `labels`,
        also the loss, as in `loss`.

        Raises:
            ValueError: not one of images and features, images or labels of a wrong shape.
        """
        if (pixel_values is None) == (features is None):
            raise ValueError("give either pixel_values or features")
        hidden_states = attentions = None
        if features is not None:
            (height, width), grid = self.config.image_height_width, self.config.grid
            tokens = list(features.unbind(1))
        else:
            assert pixel_values is not None
            height, width = pixel_values.shape[2:]
            patch_height, patch_width = self.config.patch_height_width
            pixel_values = F.pad(pixel_values, (0, -width % patch_width, 0, -height % patch_height))
            grid = self.grid_of(pixel_values)
            encoded = self.mae(pixel_values, output_hidden_states=True, return_dict=True, **kwargs)
            tokens = [self.mae.layernorm(encoded.hidden_states[i])[:, 1:] for i in self.read_blocks]
            wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            hidden_states, attentions = encoded.hidden_states if wanted else None, encoded.attentions
        maps = [each.mT.unflatten(2, grid) for each in tokens]  # (batch, width, rows, columns)
        scores, others = self.segmenter(maps)
        logits = self.resized(scores, grid)[:, :, :height, :width]  # (batch, labels, height, width)
        loss = None
        if labels is not None:
            loss = self.loss(logits, labels)
            if others is not None:
                loss = loss + AUXILIARY_WEIGHT * self.loss(self.resized(others, grid)[:, :, :height, :width], labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)

    def resized(self, scores: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """``(batch, labels, h, w)`` of any h and w -> float32, at the size in pixels of an image with this `grid` of
        patches."""
        patch_height, patch_width = self.config.patch_height_width
        size = (grid[0] * patch_height, grid[1] * patch_width)
        return F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=False)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss ``()`` of ``logits (batch, labels, height, width)`` and class numbers ``(batch, height, width)``.

        Cross-entropy, weighted by `config.class_weights`, as a mean over all pixels. Those of
        `config.semantic_loss_ignore_index` count as 0, so that the mean of several batches is that of all their
        images. `config.dice_weight` times the Dice loss is added: for each image 1 - Dice of every class, with the
        probabilities in place of a decision.

        Raises:
            ValueError: labels of another shape than the images.
        """
        wanted = (logits.shape[0], *logits.shape[2:])
        if labels.shape != wanted:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} are not {wanted}: a class number for each pixel of the images"
            )
        config, logits, labels = self.config, logits.float(), labels.long()
        ignored = config.semantic_loss_ignore_index
        weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)  # (labels,)
        smoothing = config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(
            logits, labels, weights, ignore_index=ignored, reduction="none", label_smoothing=smoothing
        ).mean()
        if not config.dice_weight:
            return loss
        known = (labels != ignored)[:, None]  # (batch, 1, height, width)
        truth = F.one_hot(labels.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1) * known
        shares = logits.softmax(1) * known  # (batch, labels, height, width)
        both, each = ((2 * shares * truth).sum((2, 3)), (shares + truth).sum((2, 3)))  # (batch, labels)
        return loss + config.dice_weight * (1 - (both + DICE_SMOOTHING) / (each + DICE_SMOOTHING)).mean()


__all__ = ["MAEForSemanticSegmentation"]
