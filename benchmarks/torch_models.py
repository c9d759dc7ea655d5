"""PyTorch's implementations of the same networks: diffusers' UNets and decoder, transformers' CLIP.

Each builder gives a model with random weights, no tensor of them constant. `variables` takes a model's
weights over to this project's layout, through the same name tables as a file's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from convert.formats import variables_of
from ultrapixel_jax.config import ClipTextConfig, StageAConfig, StageBConfig, StageCConfig

KINDS = {"C": "SDCascadeResBlock", "T": "SDCascadeTimestepBlock", "A": "SDCascadeAttnBlock"}


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Small random numbers for the weights that are initialised with zeros or ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.std() == 0 or parameter.numel() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


def unet(config: StageCConfig | StageBConfig) -> torch.nn.Module:
    """diffusers' UNet of stage C or B."""
    from diffusers import StableCascadeUNet  # pyright: ignore[reportAttributeAccessIssue]

    levels = config.levels
    if isinstance(config, StageCConfig):
        special: dict[str, Any] = {
            "clip_text_in_channels": config.c_clip_text,
            "clip_text_pooled_in_channels": config.c_clip_text_pooled,
            "clip_image_in_channels": config.c_clip_img,
            "switch_level": (False,),
        }
    else:
        special = {
            "clip_text_pooled_in_channels": config.c_clip,
            "effnet_in_channels": config.c_effnet,
            "pixel_mapper_in_channels": 3,
            "switch_level": None,
        }
    return fill(
        StableCascadeUNet(
            in_channels=config.c_latent,
            out_channels=config.c_latent,
            patch_size=config.patch_size,
            conditioning_dim=config.c_cond,
            block_out_channels=tuple(lv.channels for lv in levels),
            num_attention_heads=tuple(lv.heads for lv in levels),
            down_num_layers_per_block=tuple(lv.down_blocks for lv in levels),
            up_num_layers_per_block=tuple(lv.up_blocks for lv in reversed(levels)),
            down_blocks_repeat_mappers=tuple(lv.down_repeats for lv in levels),
            up_blocks_repeat_mappers=tuple(lv.up_repeats for lv in reversed(levels)),
            block_types_per_layer=tuple(tuple(KINDS[k] for k in lv.layers) for lv in levels),
            clip_seq=config.clip_tokens,
            timestep_conditioning_type=config.timestep_conditions,
            dropout=(0.0,) * len(levels),
            **special,
        )
    )


def paella(config: StageAConfig) -> torch.nn.Module:
    """diffusers' stage A."""
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    return fill(
        PaellaVQModel(
            bottleneck_blocks=config.bottleneck_blocks,
            embed_dim=config.c_hidden,
            num_vq_embeddings=config.codebook_size,
            scale_factor=config.scale_factor,
        )
    )


def clip(config: ClipTextConfig) -> torch.nn.Module:
    """transformers' CLIP text model."""
    from transformers import CLIPTextConfig as TorchConfig
    from transformers import CLIPTextModelWithProjection

    return fill(
        CLIPTextModelWithProjection(
            TorchConfig(
                vocab_size=config.vocab_size, hidden_size=config.width, intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers, num_attention_heads=config.heads,
                projection_dim=config.projection, max_position_embeddings=config.positions,
                hidden_act="gelu", eos_token_id=config.vocab_size - 1,
            )
        )
    )  # fmt: skip


def variables(name: str, config: Any, model: torch.nn.Module, dtype: Any) -> dict[str, Any]:
    """The weights of `model` as component `name`'s variables."""
    tensors = {key: tensor.float().numpy() for key, tensor in model.state_dict().items()}
    taken = variables_of(name, config, tensors)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if x.dtype == np.float32 else None), taken)
