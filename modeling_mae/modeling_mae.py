"""The masked autoencoder, top to bottom: positions, blocks, encoder, decoder and loss, classifier, backbone."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, BackboneMixin, GradientCheckpointingLayer, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple
from typing_extensions import Self

from .configuration_mae import MAEConfig, pair
from .masking_mae import last_ids, mask_noise, predicted_count, shuffle_by, visible_count


# Attention functions by config._attn_implementation. transformers looks for this name in the file.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()


@dataclass
class MAEModelOutput(ModelOutput):
    """Output of the encoder.

    ``last_hidden_state (batch, 1 + tokens, width)``: the class token, then all patches in raster order. With masking,
    only the visible patches follow, in the order of their noise. ``pooler_output (batch, width)``. Only with masking:
    ``mask (batch, patches)``, 1 = masked; ``ids_restore (batch, patches)``, the position of each patch in the shuffled
    sequence, which begins with the visible ones. On request: ``hidden_states``, the embedded tokens and every block's
    output ``(batch, 1 + tokens, width)``, before the final norm; ``attentions``, every block's maps ``(batch, heads,
    tokens, tokens)``.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MAEForPreTrainingOutput(ModelOutput):
    """Output of pre-training: ``loss ()`` in float32, ``logits (batch, predicted, patch values)`` in raster order,
    ``mask`` and ``ids_restore`` as in `MAEModelOutput`. ``predicted_ids (batch, predicted)`` says which patches are
    predicted. It is None if all are, including the visible ones. Hidden states and attentions, on request, are the
    encoder's."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    predicted_ids: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# --- tokens and positions ---


def take_rows(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``tokens (batch, n, width)``, ``ids (batch, m)`` -> ``(batch, m, width)``."""
    # Whole rows by index_select, because the backward pass of an expanded gather is slow on CPUs.
    batch, n, width = tokens.shape
    flat = (ids + torch.arange(batch, device=ids.device)[:, None] * n).flatten()
    return tokens.reshape(batch * n, width).index_select(0, flat).view(batch, -1, width)


def sincos_positions(grid: tuple[int, int], width: int) -> torch.Tensor:
    """Fixed 2-D sin-cos table ``(1, 1 + patches, width)``, zero for the class token. As in the published weights, the
    quarters of the width are sin and cos of the column, then sin and cos of the row."""
    rows, columns = grid
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    row = torch.arange(rows, dtype=torch.float64, device="cpu").repeat_interleave(columns)[:, None] * omega
    column = torch.arange(columns, dtype=torch.float64, device="cpu").repeat(rows)[:, None] * omega
    table = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)  # (patches, width)
    return torch.cat([table.new_zeros(1, width), table]).float()[None]  # (1, 1 + patches, width)


def resize_positions(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """``(1, 1 + old patches, width)`` -> ``(1, 1 + new patches, width)``, bicubic in 2-D, class token kept."""
    # In an exported graph with free height and width, sizes are symbols, and a comparison would fix them.
    if not any(isinstance(edge, torch.SymInt) for edge in new) and old == new:
        return table
    cls, patches = table[:, :1], table[:, 1:]
    patches = patches.float().unflatten(1, old).permute(0, 3, 1, 2)  # (1, width, rows, columns)
    patches = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([cls, patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class MAEPositions(nn.Module):
    """Position table for the class token and every patch of the configured grid, resized for any other grid."""

    def __init__(self, config: MAEConfig, width: int):
        super().__init__()
        self.grid = config.grid
        self.fixed = config.position_embedding == "sincos"
        # A fixed table is a parameter too: from_pretrained drops computed buffers, and fine-tuning may unfreeze it.
        self.table = nn.Parameter(torch.zeros(1, 1 + config.num_patches, width), requires_grad=not self.fixed)

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        return resize_positions(self.table, self.grid, grid)  # (1, 1 + patches, width)


# --- blocks ---


def eager_attention_forward(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
    """Attention written out. Only this implementation can return the maps ``(batch, heads, queries, keys)``."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


def attend(
    module: "MAEAttention | MAECrossAttention", query, key, value, output_attentions: bool = False, **kwargs
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by the configured implementation, ``(batch, heads, tokens, head width)`` each. Returns ``(batch,
    queries, heads, head width)`` and, on request, the maps."""
    implementation = module.config._attn_implementation
    # Fused kernels return no maps. On CPUs their backward pass in bfloat16 takes two thirds of the whole step.
    slow = implementation == "sdpa" and query.is_cpu and query.dtype == torch.bfloat16 and query.requires_grad
    if output_attentions or slow:
        implementation = "eager"
    function: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    return function(module, query, key, value, None, scaling=module.scaling, dropout=0.0, **kwargs)


class MAEAttention(nn.Module):
    is_causal = False

    def __init__(self, config: MAEConfig, width: int, heads: int):
        super().__init__()
        self.config = config
        self.head_dim = width // heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, tokens, width = hidden_states.shape
        # Split before the heads, so that the backward pass joins the three gradients in one copy.
        query, key, value = (
            part.view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (batch, heads, tokens, head width)
            for part in self.qkv(hidden_states).chunk(3, dim=-1)
        )
        attended, weights = attend(self, query, key, value, **kwargs)
        return self.proj(attended.reshape(batch, tokens, width)), weights


class MAECrossAttention(nn.Module):
    """``queries (batch, queries, decoder width)`` attend to ``context (batch, tokens, encoder width)``."""

    is_causal = False

    def __init__(self, config: MAEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.config = config
        self.head_dim = width // config.decoder_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.kv = nn.Linear(config.hidden_size, 2 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, tokens, head width)
            for part in (self.q(queries), *self.kv(context).chunk(2, dim=-1))
        )
        attended, _ = attend(self, query, key, value)
        return self.proj(attended.flatten(2))


class MAEMLP(nn.Module):
    def __init__(self, config: MAEConfig, width: int, intermediate: int):
        super().__init__()
        self.fc1 = nn.Linear(width, intermediate)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class MAEDropPath(nn.Module):
    """While training, skips a residual branch of an image with probability `rate` (arXiv 1603.09382). Not timm's,
    because this file travels with every checkpoint, which must load with transformers alone."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


class MAELayer(GradientCheckpointingLayer):
    """A pre-norm transformer block, ``(batch, tokens, width)`` to the same. Appends its attention maps to `maps`."""

    def __init__(self, config: MAEConfig, width: int, heads: int, intermediate: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = MAEAttention(config, width, heads)
        self.drop_path1 = MAEDropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MAEMLP(config, width, intermediate)
        self.drop_path2 = MAEDropPath(drop_path)

    def forward(self, hidden_states: torch.Tensor, maps: list | None = None, **kwargs) -> torch.Tensor:
        normed = self.norm1(hidden_states)
        attended, weights = self.attention(normed, output_attentions=maps is not None, **kwargs)
        if maps is not None:
            maps.append(weights)
        hidden_states = hidden_states + self.drop_path1(attended)
        return hidden_states + self.drop_path2(self.mlp(self.norm2(hidden_states)))


class MAECrossLayer(GradientCheckpointingLayer):
    """A block of the cross decoder. The queries do not see each other."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.cross_attention = MAECrossAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MAEMLP(config, width, config.decoder_intermediate_size)

    def forward(self, queries: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        queries = queries + self.cross_attention(self.norm1(queries), context)
        return queries + self.mlp(self.norm2(queries))


# --- models ---


class MAEPreTrainedModel(PreTrainedModel):
    config: MAEConfig
    config_class = MAEConfig
    base_model_prefix = "mae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as transformers' own models have it
    supports_gradient_checkpointing = True
    _no_split_modules = "MAELayer MAECrossLayer MAEEmbeddings MAEPositions".split()
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The losses are batch means, so transformers' Trainer must divide them by the batches per update.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as the paper's code: xavier-uniform linear layers, tokens N(0, 0.02), unit LayerNorms. Uses only
        `transformers.initialization`, which does not overwrite loaded weights."""
        if isinstance(module, (nn.Linear, MAEStageWeighting)):
            self._init_linear(module)
        elif isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)):
            self._init_norm(module)
        elif isinstance(module, MAEPositions):
            if module.fixed:
                init.copy_(module.table, sincos_positions(module.grid, module.table.shape[-1]))
            else:
                init.normal_(module.table, std=self.config.initializer_range)
        elif isinstance(module, MAEAttentionPooling):
            init.normal_(module.queries, std=self.config.initializer_range)
        elif isinstance(module, MAEEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
        elif isinstance(module, (MAEDecoder, MAECrossDecoder)):
            init.normal_(module.mask_token, std=self.config.initializer_range)

    def _init_norm(self, module: nn.Module) -> None:
        for name, values in (*module.named_parameters(), *module.named_buffers()):
            (init.ones_ if name in ("weight", "running_var") else init.zeros_)(values)

    def _init_linear(self, module: "nn.Linear | MAEStageWeighting") -> None:
        if isinstance(module, MAEHead):
            init.trunc_normal_(module.weight, std=self.config.head_initializer_range)
        elif isinstance(module, MAEPoolingValue):
            init.eye_(module.weight)
        else:
            init.xavier_uniform_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)

    # Opens other projects' checkpoints. The package sets it, because `interop.read` does not travel with checkpoints.
    read_foreign: Callable | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, image_size=None, **kwargs):
        """As for any transformers model. If `image_size` (pixels, int or (height, width)), given here or in `config`,
        is not the checkpoint's, positions are interpolated as by `set_image_size`. If the package is installed, this
        also loads other projects' checkpoints through `modeling_mae.interop`."""
        config = kwargs.pop("config", None)
        if image_size is None and isinstance(config, MAEConfig):
            image_size = config.image_size
        checkpoint_config = foreign = None
        if cls.read_foreign is not None and pretrained_model_name_or_path is not None:
            foreign = cls.read_foreign(pretrained_model_name_or_path, image_size, kwargs)
        if foreign is not None:
            pretrained_model_name_or_path, kwargs["state_dict"] = None, foreign.state_dict
            checkpoint_config = foreign.config
            config = config or checkpoint_config
        elif image_size is not None and pretrained_model_name_or_path is not None:
            where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
            checkpoint_config = MAEConfig.from_pretrained(
                pretrained_model_name_or_path, **{key: kwargs[key] for key in where if key in kwargs}
            )
        if config is not None:
            kwargs["config"] = copy.deepcopy(config)
            if checkpoint_config is not None:
                kwargs["config"].image_size = checkpoint_config.image_size
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(model, MAEForPreTraining):
            model.freeze_fixed()
        if image_size is not None:
            model.set_image_size(image_size)
        return loaded

    @torch.no_grad()
    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Reconfigure the model for images of `image_size` pixels: position tables are interpolated in 2-D.

        Raises:
            ValueError: the size is not a multiple of the patch, or the head only works for one size.
        """
        old = self.config.image_size
        if pair(image_size, "image_size") == self.config.image_height_width:
            return
        self.config.image_size = image_size
        try:
            self.config.validate_patches()
            if self.config.pooling == "flatten" and isinstance(self, EvalNet):
                raise ValueError(
                    f"image_size={image_size}: a head with pooling='flatten' only works for image_size={old}"
                )
        except ValueError:
            self.config.image_size = old
            raise
        for module in self.modules():
            if isinstance(module, MAEPositions):
                table = resize_positions(module.table, module.grid, self.config.grid)
                module.table = nn.Parameter(table, requires_grad=module.table.requires_grad)
                module.grid = self.config.grid

    def patchify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, height, width)`` -> ``(batch, patches, patch height * patch width * channels)``, patches
        in raster order; within a patch row by row, channels last.

        Raises:
            ValueError: another number of channels, or a size that is not a multiple of the patch.
        """
        rows, columns = self.grid_of(pixel_values)
        patch_height, patch_width = self.config.patch_height_width
        patches = pixel_values.unflatten(3, (columns, patch_width)).unflatten(2, (rows, patch_height))
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2).flatten(2)

    def unpatchify(self, patches: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The inverse of `patchify`; `size` = (height, width) in pixels, the configured one by default."""
        height, width = size or self.config.image_height_width
        patch_height, patch_width = self.config.patch_height_width
        rows, columns = height // patch_height, width // patch_width
        if patches.shape[1] != rows * columns:
            raise ValueError(f"{patches.shape[1]} patches do not make an image of {height}x{width} pixels")
        pixels = patches.unflatten(2, (patch_height, patch_width, self.config.num_channels))
        pixels = pixels.unflatten(1, (rows, columns))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def grid_of(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """(rows, columns) of the patches of a batch of images. Checks the batch's shape."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)} are not "
                f"(batch, {self.config.num_channels} channels, height, width)"
            )
        height, width = pixel_values.shape[2:]
        patch_height, patch_width = self.config.patch_height_width
        if height % patch_height or width % patch_width or not height or not width:
            raise ValueError(
                f"images of {height}x{width} pixels are not a multiple of the {patch_height}x{patch_width} patches; "
                "resize or pad them"
            )
        return height // patch_height, width // patch_width


class MAEEmbeddings(nn.Module):
    def __init__(self, config: MAEConfig):
        super().__init__()
        self.patch_embeddings = nn.Linear(config.patch_dim, config.hidden_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = MAEPositions(config, config.hidden_size)

    def forward(self, patches: torch.Tensor, grid: tuple[int, int], ids_keep: torch.Tensor | None) -> torch.Tensor:
        positions = self.positions(grid)
        cls_position, patch_positions = positions[:, :1], positions[:, 1:]
        if ids_keep is not None:
            patches = take_rows(patches, ids_keep)  # (batch, visible, patch values)
            patch_positions = patch_positions[0][ids_keep]  # (batch, visible, width)
        # The dtype of the tokens, because a quantised weight is stored in another one.
        tokens = self.patch_embeddings(patches.to(self.cls_token.dtype)) + patch_positions
        cls = (self.cls_token + cls_position).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls.to(tokens.dtype), tokens], dim=1)  # (batch, 1 + visible, width)


class MAEPoolingValue(nn.Linear):
    """The values of `MAEAttentionPooling`. They start as the tokens themselves."""


class MAEAttentionPooling(nn.Module):
    """Learned queries pool the patch tokens, as in attentive probing with several queries (arXiv 2506.10178). There is
    no projection of the keys, because each head has its own queries.

    The keys are the normalised tokens, the values a projection of them. Each query of each head pools its own part of
    the values' width, so the result is as wide as a token. At the start the queries are near zero and the projection
    changes nothing, so the result is near the mean of the tokens.
    """

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.heads = config.num_pooling_heads
        # Two-dimensional like the weights of a linear layer, so that weight decay and LARS treat them as such.
        self.queries = nn.Parameter(torch.zeros(config.num_pooling_queries, config.hidden_size))
        self.value = MAEPoolingValue(config.hidden_size, config.hidden_size)

    def weights(self, tokens: torch.Tensor) -> torch.Tensor:
        """The attention maps ``(batch, heads, queries, tokens)`` of the queries. They sum to 1 over the tokens."""
        queries, keys = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.queries[None], tokens))
        scores = queries * queries.shape[-1] ** -0.5 @ keys.mT  # (batch, heads, queries, tokens)
        return scores.softmax(-1, dtype=torch.float32).to(tokens.dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, width)`` -> ``(batch, width)``: the parts of head 0's queries, then of head 1's."""
        values = self.value(tokens).unflatten(2, (self.heads, self.queries.shape[0], -1))
        pooled = self.weights(tokens)[..., None, :] @ values.permute(0, 2, 3, 1, 4)  # (batch, heads, queries, 1, part)
        return pooled.flatten(1)


class MAEModel(MAEPreTrainedModel):
    """The encoder. Without masking arguments it is an ordinary vision transformer: every patch, in raster order,
    deterministic. It also takes images of another size than configured: positions are then interpolated in 2-D.

    With `add_pooling_layer` false there is no attention pooling, even if the configuration has one."""

    # Drops the checkpoint's decoder and heads silently, and a pooling that the configuration does not have.
    _keys_to_ignore_on_load_unexpected = r"^decoder\. ^head(_norm)?\. ^segmenter\. ^(mae\.)?pooler\.".split()

    def __init__(self, config: MAEConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = MAEEmbeddings(config)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(
            MAELayer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                drop_path=config.drop_path_rate * i / max(1, depth - 1),
            )
            for i in range(depth)
        )
        self.layernorm: nn.Module = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        pools = add_pooling_layer and config.pooling == "attention"
        self.pooler = MAEAttentionPooling(config) if pools else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        patches: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MAEModelOutput:
        """Encode ``pixel_values (batch, channels, height, width)``, or `patches` as `patchify` returns them.

        Masks only if one of these is given. `noise (batch, patches)`: the smallest values stay visible.
        `bool_masked_pos (batch, patches)`: true = masked, the same count in every image. `mask_ratio`: replaces the
        configured ratio. Without noise, a mask of the configured kind is drawn.

        Raises:
            ValueError: a wrong shape or size, a ratio outside (0, 1), unequal mask counts, both noise and mask, or an
                argument that only text models take.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if others := kwargs.keys() & {"attention_mask", "input_ids", "inputs_embeds"}:
            raise ValueError(f"{', '.join(sorted(others))}: only text models take it; bool_masked_pos hides patches")
        grid = self.grid_of(pixel_values)
        if patches is None:
            patches = self.patchify(pixel_values)  # (batch, patches, patch values)
        ids_keep = mask = ids_restore = None
        if noise is not None or bool_masked_pos is not None or mask_ratio is not None:
            ids_keep, mask, ids_restore = self.choose_mask(patches, grid, noise, bool_masked_pos, mask_ratio)
        hidden_states = self.embeddings(patches, grid, ids_keep)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        stages = [hidden_states]
        maps: list[torch.Tensor] | None = [] if output_attentions else None
        for layer in self.layers:
            hidden_states = layer(hidden_states, maps=maps, **kwargs)
            if output_hidden_states:
                stages.append(hidden_states)
        hidden_states = self.layernorm(hidden_states)
        return MAEModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.pool(hidden_states),
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=tuple(stages) if output_hidden_states else None,
            attentions=None if maps is None else tuple(maps),
        )

    def pool(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """``(batch, 1 + tokens, width)`` -> ``(batch, width)``, or ``(batch, tokens * width)`` for ``flatten``. None
        for ``attention`` if the model has no queries."""
        if self.config.pooling == "cls":
            return hidden_states[:, 0]
        patches = hidden_states[:, 1:]
        if self.config.pooling == "attention":
            return None if self.pooler is None else self.pooler(patches)
        return patches.flatten(1) if self.config.pooling == "flatten" else patches.mean(1)

    def choose_mask(self, patches, grid, noise=None, bool_masked_pos=None, mask_ratio=None):
        """(ids of the visible patches, mask, ids_restore) from the given noise, mask or ratio."""
        batch, num_patches = patches.shape[:2]
        if bool_masked_pos is not None:
            if noise is not None or mask_ratio is not None:
                raise ValueError("give bool_masked_pos alone: it decides what noise or mask_ratio would decide")
            if bool_masked_pos.shape != (batch, num_patches):
                raise ValueError(
                    f"bool_masked_pos of shape {tuple(bool_masked_pos.shape)} is not {(batch, num_patches)}"
                )
            counts = bool_masked_pos.bool().sum(1)
            fewest, most = int(counts.min()), int(counts.max())
            if fewest != most:
                raise ValueError(
                    f"bool_masked_pos masks between {fewest} and {most} patches of an image; all images of a batch "
                    "need the same count"
                )
            if most in (0, num_patches):
                raise ValueError(
                    f"bool_masked_pos masks {most} of {num_patches} patches; some must be masked, some visible"
                )
            return shuffle_by(bool_masked_pos.to(patches.device).int(), num_patches - most)
        if noise is None:
            noise = mask_noise(self.config.mask_type, batch, grid, device=patches.device)
        elif noise.shape != (batch, num_patches):
            raise ValueError(f"noise of shape {tuple(noise.shape)} is not (batch, patches) = {(batch, num_patches)}")
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        return shuffle_by(noise.to(patches.device), visible_count(num_patches, ratio))


class MAEDecoder(nn.Module):
    """The paper's decoder: visible and predicted patches attend to each other."""

    reads_stages = False  # it only reads the encoder's output

    def __init__(self, config: MAEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = MAEPositions(config, width)
        self.layers = nn.ModuleList(
            MAELayer(config, width, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.patch_dim)

    def forward(
        self, encoded: MAEModelOutput, grid: tuple[int, int], count: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The predictions ``(batch, count, patch values)`` of the `count` patches with the largest noise, and their
        ids. Without `count`, the predictions of all patches, including the visible ones, and None. The decoder does
        not see masked patches that it does not predict."""
        ids_restore = encoded.ids_restore
        assert ids_restore is not None  # the encoder has masked
        tokens = self.embed(encoded.last_hidden_state)  # (batch, 1 + visible, decoder width)
        batch, visible = tokens.shape[0], tokens.shape[1] - 1
        masked = ids_restore.shape[1] - visible if count is None else count
        mask_tokens = self.mask_token.to(tokens.dtype).expand(batch, masked, -1)
        if count is not None:
            ids = last_ids(ids_restore, count)
            places = F.pad(torch.cat([ids_restore.argsort(dim=1)[:, :visible], ids], dim=1) + 1, (1, 0))
            tokens = torch.cat([tokens, mask_tokens], dim=1) + self.positions(grid)[0][places]
            return self.predict(tokens, 1 + visible), ids
        # Place 0 is the class token, so patch i of the raster is at place ids_restore[i] + 1 of the shuffled tokens.
        places = F.pad(ids_restore + 1, (1, 0))
        tokens = take_rows(torch.cat([tokens, mask_tokens], dim=1), places)  # (batch, 1 + patches, decoder width)
        return self.predict(tokens + self.positions(grid)), None

    def predict(self, tokens: torch.Tensor, first: int = 1) -> torch.Tensor:
        """The predictions of blocks and head, without the `first` tokens."""
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens[:, first:]))


class MAEStageWeighting(nn.Module):
    """A weighted sum of the encoder's stages for each block of the decoder. Not an nn.Linear, because libraries that
    adapt or quantise linear layers would call it with a tensor."""

    def __init__(self, stages: int, depth: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(depth, stages))
        # Initialised as nn.Linear, so that later draws stay the same for a seed. _init_weights draws again.
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, stages: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        sums = torch.einsum("ds,sbtw->dbtw", self.weight, torch.stack(stages))  # (depth, batch, tokens, width)
        return sums.unbind()


class MAECrossDecoder(nn.Module):
    """CrossMAE's decoder (arXiv 2401.14391): predicted patches attend to the encoder's tokens alone."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        width, depth = config.decoder_hidden_size, config.decoder_num_hidden_layers
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = MAEPositions(config, width)
        self.reads_stages = config.decoder_reads != "last"
        if self.reads_stages:
            self.first_stage = 0 if config.decoder_reads == "stages" else 1  # stage 0: the embedded patches
            stages = config.num_hidden_layers + 1 - self.first_stage
            self.weighting = MAEStageWeighting(stages, depth)
            self.context_norms = nn.ModuleList(
                nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(depth)
            )
        self.layers = nn.ModuleList(MAECrossLayer(config) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.patch_dim)

    def forward(
        self, encoded: MAEModelOutput, grid: tuple[int, int], count: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The predictions ``(batch, count, patch values)`` of the `count` patches with the largest noise, and their
        ids. Without `count`, of every masked patch."""
        assert encoded.ids_restore is not None and encoded.last_hidden_state is not None  # the encoder has masked
        if count is None:
            count = encoded.ids_restore.shape[1] + 1 - encoded.last_hidden_state.shape[1]
        ids = last_ids(encoded.ids_restore, count)
        queries = self.mask_token + self.positions(grid)[0][ids + 1]  # (batch, count, decoder width)
        for layer, context in zip(self.layers, self.contexts(encoded), strict=True):
            queries = layer(queries, context)
        return self.head(self.norm(queries)), ids

    def contexts(self, encoded: MAEModelOutput) -> list[torch.Tensor]:
        """The tokens ``(batch, 1 + visible, encoder width)`` that each block attends to."""
        if not self.reads_stages:
            assert encoded.last_hidden_state is not None
            return [encoded.last_hidden_state] * len(self.layers)
        assert encoded.hidden_states is not None  # MAEForPreTraining asks for them
        weighted = self.weighting(encoded.hidden_states[self.first_stage :])
        return [norm(context) for norm, context in zip(self.context_norms, weighted, strict=True)]


DECODERS = {"self": MAEDecoder, "cross": MAECrossDecoder}  # by config.decoder_type


class MAEForPreTraining(MAEPreTrainedModel):
    """Encoder, decoder and the loss on masked patches (paper, Section 3)."""

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        # Nothing here depends on a pooling, and DDP takes no parameters without a gradient.
        self.mae = MAEModel(config, add_pooling_layer=False)
        self.decoder = DECODERS[config.decoder_type](config)
        self.freeze_fixed()
        self.post_init()

    def freeze_fixed(self) -> None:
        """Freeze what training must not change. Loading makes every weight trainable."""
        for module in self.modules():
            if isinstance(module, MAEPositions):
                module.table.requires_grad_(not module.fixed)
        # The decoder may read the tokens before this norm. DDP refuses a trained weight without a gradient.
        self.mae.layernorm.requires_grad_(not self.decoder.reads_stages)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        prediction_ratio: float | None = None,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MAEForPreTrainingOutput:
        """Mask, encode the visible patches, decode, and compare the predictions with the masked patches.

        Arguments and errors as `MAEModel.forward`. Without a masking argument, a mask of the configured kind and ratio
        is drawn. `prediction_ratio` replaces the configured one; 1 predicts every masked patch. The patches with the
        largest noise are predicted. With `bool_masked_pos`, which gives no order, all masked patches are.
        `return_loss` tells transformers' Trainer that the loss needs no labels.

        Raises:
            ValueError: also if `prediction_ratio` is outside (0, 1].
        """
        if noise is None and bool_masked_pos is None and mask_ratio is None:
            mask_ratio = self.config.mask_ratio
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        patches = self.patchify(pixel_values)  # (batch, patches, patch values)
        encoded = self.mae(
            pixel_values,
            noise,
            bool_masked_pos,
            mask_ratio,
            patches,
            output_hidden_states=output_hidden_states or self.decoder.reads_stages,
            return_dict=True,
            **kwargs,
        )
        count = None
        ratio = self.config.prediction_ratio if prediction_ratio is None else prediction_ratio
        if ratio is not None and bool_masked_pos is None:
            num_patches = encoded.ids_restore.shape[1]
            masked = num_patches + 1 - encoded.last_hidden_state.shape[1]
            count = predicted_count(num_patches, ratio, masked)
            count = None if count == masked else count
        logits, predicted_ids = self.decoder(encoded, self.grid_of(pixel_values), count)
        loss = self.loss(patches, logits, encoded.mask, predicted_ids) if return_loss else None
        if loss is not None and self.config.uniformity_weight:
            loss = loss + self.config.uniformity_weight * mean_squared_cosine(encoded.last_hidden_state[:, 1:].mean(1))
        return MAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            predicted_ids=predicted_ids,
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
        )

    def loss(
        self,
        patches: torch.Tensor,
        logits: torch.Tensor,
        mask: torch.Tensor,
        predicted_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean squared error ``()`` over the predicted masked patches, in float32 even if the model's dtype is
        another. ``patches (batch, patches, patch values)`` are the images' own."""
        with torch.autocast(patches.device.type, enabled=False):
            target = patches.float()
            if predicted_ids is not None:
                target = take_rows(target, predicted_ids)  # (batch, predicted, patch values)
            if self.config.norm_pix_loss:
                mean, deviation = patch_statistics(target)
                target = (target - mean) / deviation
            error = (logits.float() - target).square().mean(-1)  # (batch, predicted)
            return error.mean() if predicted_ids is not None else (error * mask).sum() / mask.sum()

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: torch.Tensor, outputs: MAEForPreTrainingOutput | None = None, **masking
    ) -> torch.Tensor:
        """The image ``(batch, channels, height, width)``, normalised as `pixel_values`. Visible patches are the
        image's own, masked ones are predicted. With `norm_pix_loss` each prediction gets the mean and deviation of the
        hidden patch.

        Give `outputs` of an earlier call on the same images, or masking arguments as in `forward`; then every masked
        patch is predicted.

        Raises:
            ValueError: `outputs` predict only a part of the masked patches.
        """
        outputs = self(pixel_values, **{"prediction_ratio": 1, **masking}) if outputs is None else outputs
        assert outputs.logits is not None and outputs.mask is not None
        patches = self.patchify(pixel_values.float())
        predicted, ids = outputs.logits.float(), outputs.predicted_ids
        if ids is not None:
            masked = int(outputs.mask[0].sum())
            if ids.shape[1] != masked:
                raise ValueError(
                    f"outputs predict {ids.shape[1]} of {masked} masked patches; "
                    "call the model with prediction_ratio=1"
                )
            places = ids[..., None].expand_as(predicted)
            predicted = torch.zeros_like(patches).scatter(1, places, predicted)  # (batch, patches, patch values)
        if self.config.norm_pix_loss:
            mean, deviation = patch_statistics(patches)
            predicted = predicted * deviation + mean
        height, width = pixel_values.shape[2:]
        return self.unpatchify(torch.where(outputs.mask[..., None] > 0, predicted, patches), (height, width))


def mean_squared_cosine(features: torch.Tensor) -> torch.Tensor:
    """The mean squared cosine over all pairs of ``features (images, width)``, in float32. 0 for a single image. The
    images are one process's micro-batch."""
    with torch.autocast(features.device.type, enabled=False):
        normalised = F.normalize(features.float(), dim=1)
        cosines = normalised @ normalised.T  # (images, images); the diagonal is 1
        images = len(features)
        return (cosines.square().sum() - images) / max(1, images * (images - 1))


def patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each patch ``(batch, patches, 1)``; 1e-6, as in the paper's code, keeps flat patches
    finite."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


@contextmanager
def loading_report() -> Iterator[list[str]]:
    """Holds back transformers' table of missing weights until the end. Sentences put into the list replace it."""
    logger = logging.getLogger("transformers.modeling_utils")
    held: list[logging.LogRecord] = []
    sentences: list[str] = []

    def hold(record: logging.LogRecord) -> bool:
        held.append(record)
        return False

    logger.addFilter(hold)
    try:
        yield sentences
    finally:
        logger.removeFilter(hold)
        for record in held:
            if not (sentences and "LOAD REPORT" in record.getMessage()):
                logger.handle(record)
        for sentence in sentences:
            logger.warning(sentence)


class MAETunedModel(MAEPreTrainedModel):
    """The encoder `mae` and a head, of which a part or all is trained."""

    mae: MAEModel
    n_partial: float | None = None
    new_weights: tuple[str, ...]  # the beginnings of the weights' names in `new_modules`

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        with loading_report() as in_its_place:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
            missing, others = info["missing_keys"], info["mismatched_keys"] or info["unexpected_keys"]
            if missing and not others and all(name.startswith(cls.new_weights) for name in missing):
                in_its_place.append(
                    f"{cls.__name__}: a new classifier with {model.config.num_labels} outputs, yet to be trained"
                )
        return (model, info) if output_loading_info else model

    def new_modules(self) -> list[nn.Module]:
        """The modules that the encoder does not have."""
        raise NotImplementedError

    def freeze(self, n_partial: float) -> Self:
        """Train only a part of the model (paper, Figure 9). This survives `train()`: frozen parts stay in eval mode
        and run without a graph.

        `n_partial`: 0 = `new_modules`: of EvalNet the head, its norm, and the queries and values of
        pooling='attention'. 0.5 = also the encoder's final norm, and the MLP of the last block with its LayerNorm.
        1 ... depth - 1 = also the final norm and that many of the last blocks. depth = everything, with patch
        embedding, class token and positions.

        Raises:
            ValueError: any other value, or a model with PEFT's adapters.
        """
        if self.has_adapters():
            raise ValueError(
                f"freeze({n_partial}): the model has adapters, and their file would not hold the weights that this "
                "trains; name these modules in modules_to_save of the adapter's configuration"
            )
        depth = self.config.num_hidden_layers
        if isinstance(n_partial, bool) or n_partial not in (0, 0.5, *range(1, depth + 1)):
            raise ValueError(
                f"n_partial={n_partial} is not one of 0 (head only), 0.5 (the last block's MLP too) and 1 ... {depth} "
                f"(that many of the last blocks; {depth} is everything)"
            )
        self.n_partial = n_partial
        self.requires_grad_(n_partial == depth)
        for module in self.tuned_modules():
            module.requires_grad_(True)
        return self.train(self.training)

    def has_adapters(self) -> bool:
        """Whether PEFT has put adapters into the model."""
        return any(hasattr(module, "merged_adapters") for module in self.modules())

    def tuned_modules(self) -> list[nn.Module]:
        """The modules that `freeze` leaves trainable."""
        if self.n_partial is None or self.n_partial == self.config.num_hidden_layers:
            return [self]
        tuned = self.new_modules()
        if self.n_partial > 0:
            tuned.append(self.mae.layernorm)
        if self.n_partial == 0.5:
            last = self.mae.layers[-1]
            tuned += [last.get_submodule(name) for name in ("norm2", "mlp", "drop_path2")]
        elif self.n_partial > 0:
            tuned += self.mae.layers[-int(self.n_partial) :]
        return tuned

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not mode:
            return self
        if self.has_adapters():
            # They are in the frozen parts too: those stay in training mode, as PEFT has it. The statistics of a
            # BatchNorm are in the adapters' file if PEFT has wrapped it for modules_to_save.
            wrapped = [module for module in self.modules() if hasattr(module, "modules_to_save")]
            saved = {id(part) for module in wrapped for part in module.modules()}
            # run_eval.py keeps the whole head beside its adapters, without wrapping it.
            if wrapped or not any(p.requires_grad for new in self.new_modules() for p in new.parameters()):
                for module in self.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in saved:
                        module.eval()
        elif self.n_partial is not None:
            tuned = self.tuned_modules()
            if self not in tuned:
                self.mae.eval()
                for module in tuned:
                    module.train()
        return self


class MAEHead(nn.Linear):
    """The classifier. It has its own class because its weights are initialised differently."""


class EvalNet(MAETunedModel):
    """The encoder and a linear classifier: probing, partial and end-to-end fine-tuning (paper, Sections 4.3, A.1).

    `EvalNet.from_pretrained(<pre-trained or EvalNet checkpoint>, num_labels=...)` takes the encoder. Missing weights
    are newly initialised. One line reports it, or transformers' table if more than the classifier is missing. Pooling,
    norm, drop path and label smoothing are set in the config.
    """

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.mae = MAEModel(config)
        width = config.hidden_size * (config.num_patches if config.pooling == "flatten" else 1)
        self.head_norm: nn.Module = nn.Identity()
        if config.head_norm == "layer":
            if config.pooling != "attention":
                self.mae.layernorm = nn.Identity()
            self.head_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        elif config.head_norm == "batch":
            self.head_norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        assert config.num_labels is not None  # transformers' default is 2
        self.head = MAEHead(width, config.num_labels)
        self.post_init()

    # Drops the decoder, the final norm if head_norm="layer" replaces it, and a pooling that the configuration does not
    # have.
    _keys_to_ignore_on_load_unexpected = r"^decoder\. ^segmenter\. ^(mae\.)?(layernorm|pooler)\.".split()
    new_weights = ("head.", "head_norm.", "mae.pooler.")

    @torch.no_grad()
    def reset_head(self) -> None:
        """Initialise the classifier again, for classes other than the checkpoint's."""
        self.head = MAEHead(self.head.in_features, self.head.out_features).to(self.head.weight)
        self._init_weights(self.head)

    def new_modules(self) -> list[nn.Module]:
        return [self.head, self.head_norm, *([] if self.mae.pooler is None else [self.mae.pooler])]

    @property
    def frozen_size(self) -> int:
        """How many numbers `frozen_features` returns for an image of the configured size."""
        config = self.config
        return config.hidden_size * (config.num_patches if config.pooling in ("attention", "flatten") else 1)

    def frozen_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The features that a probe (`freeze(0)`) does not change: pooled ``(batch, width)``, or with
        pooling="attention" the patch tokens ``(batch, patches, width)``. `forward` takes them instead of images, so
        that the features of unchanged images are computed only once."""
        encoded = self.mae(pixel_values, return_dict=True)
        return encoded.pooler_output if self.mae.pooler is None else encoded.last_hidden_state[:, 1:]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """Classify ``pixel_values (batch, channels, height, width)``, or `features` as `frozen_features` returns them.
        Returns ``logits (batch, classes)`` and, with `labels`, the loss (see `loss`).

        Raises:
            ValueError: both or neither of images and features, or images or labels of a wrong shape or size.
        """
        if (pixel_values is None) == (features is None):
            raise ValueError("give either pixel_values or features")
        hidden_states = attentions = None
        if features is not None:
            pooled = features if self.mae.pooler is None else self.mae.pooler(features)
        else:
            assert pixel_values is not None
            self.check_size(pixel_values)
            encoded = self.mae(pixel_values, return_dict=True, **kwargs)
            pooled, hidden_states, attentions = encoded.pooler_output, encoded.hidden_states, encoded.attentions
        logits = self.head(self.head_norm(pooled))
        loss = None if labels is None else self.loss(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)

    def check_size(self, pixel_values: torch.Tensor) -> None:
        """Raises a ValueError unless the head works for this size of ``pixel_values (batch, channels, height,
        width)``."""
        if self.config.pooling == "flatten" and self.grid_of(pixel_values) != self.config.grid:
            raise ValueError(
                f"images of {tuple(pixel_values.shape[2:])} pixels: a head with pooling='flatten' only "
                f"works for image_size={self.config.image_size}"
            )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss ``()`` of ``logits (batch, classes)`` in float32, by `config.problem_type` as in transformers.

        ``single_label_classification``: cross-entropy, in training smoothed by `config.label_smoothing`. Labels are
        class numbers ``(batch,)``, or probabilities ``(batch, classes)`` as mixup makes them.
        ``multi_label_classification``: binary cross-entropy. Labels are 0 and 1, or anything between,
        ``(batch, classes)``. ``regression``: mean squared error. Labels are ``(batch, targets)``; for one target also
        ``(batch,)``.

        The default is ``single_label_classification``, except that a head with one output and float labels is
        ``regression``, as in transformers. transformers reads other floats as several labels. Here they are mixup's
        probabilities, so set `problem_type` for several labels.

        Raises:
            ValueError: labels of a wrong shape.
        """
        logits, problem = logits.float(), self.config.problem_type
        if problem is None and logits.shape[-1] == 1 and labels.is_floating_point():
            problem = "regression"
        if problem not in ("multi_label_classification", "regression"):
            smoothing = self.config.label_smoothing if self.training else 0.0
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if logits.shape[-1] == 1 and labels.ndim == 1:
            labels = labels[:, None]
        if labels.shape != logits.shape:  # the losses would silently broadcast them
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} are not {tuple(logits.shape)}, as problem_type={problem!r} "
                f"with num_labels={logits.shape[-1]} needs"
            )
        compare = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return compare(logits, labels.to(logits))


class MAEBackbone(BackboneMixin, MAEPreTrainedModel):
    """The encoder as a backbone of detection and segmentation models. It returns a feature map for each stage in
    `config.out_features`: ``stem`` (the embedded patches), ``stage1`` ... ``stage<depth>`` (the blocks)."""

    _keys_to_ignore_on_load_unexpected = MAEModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: MAEConfig):
        if config.out_features is None:
            config.set_output_features_output_indices(None, None)  # the last block
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        # Nothing here depends on a pooling, and DDP takes no parameters without a gradient.
        self.mae = MAEModel(config, add_pooling_layer=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BackboneOutput:
        """`feature_maps`: for each stage ``(batch, width, rows, columns)``, after the encoder's final norm. With
        `config.reshape_hidden_states` false ``(batch, 1 + patches, width)``, the class token first, as DPT and
        DepthAnything read them.

        Takes images of any size. They are padded at the bottom and on the right to a multiple of the patch, with
        zeros, the mean colour.

        Raises:
            ValueError: another number of channels.
        """
        patch_height, patch_width = self.config.patch_height_width
        height, width = pixel_values.shape[-2:]
        pixel_values = F.pad(pixel_values, (0, -width % patch_width, 0, -height % patch_height))
        grid = self.grid_of(pixel_values)
        encoded = self.mae(pixel_values, output_hidden_states=True, return_dict=True, **kwargs)
        maps = tuple(
            self.mae.layernorm(hidden_states)
            for stage, hidden_states in zip(self.stage_names, encoded.hidden_states, strict=True)
            if stage in self.out_features
        )
        if self.config.reshape_hidden_states:
            maps = tuple(tokens[:, 1:].mT.unflatten(2, grid) for tokens in maps)  # (batch, width, rows, columns)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = encoded.hidden_states if output_hidden_states else None
        return BackboneOutput(feature_maps=maps, hidden_states=hidden_states, attentions=encoded.attentions)


__all__ = [
    "EvalNet",
    "MAEBackbone",
    "MAEForPreTraining",
    "MAEForPreTrainingOutput",
    "MAEModel",
    "MAEModelOutput",
    "MAEPreTrainedModel",
    "MAETunedModel",
]
