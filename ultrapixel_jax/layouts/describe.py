"""What a file that no table knows looks like, and what would be needed instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

CASCADE = "Stable Cascade's stages (stage_c, stage_b, stage_a or their ComfyUI files) are needed"
FORMS = "LoRA and DoRA of its stage C and CLIP bigG are read"


class Look(NamedTuple):
    """One kind of file."""

    patterns: tuple[str, ...]
    """Each must be found in some key."""
    name: str
    needed: str = CASCADE


LOOKS: Sequence[Look] = (
    # Changes of another network
    Look((r"\.hada_w1_a",), "a LoHa (LyCORIS)", FORMS),
    Look((r"\.lokr_w[12]",), "a LoKr (LyCORIS)", FORMS),
    Look((r"\.oft_(blocks|diag)|\.oft_R\.",), "an OFT or BOFT", FORMS),
    Look((r"\.(diff|diff_b|w_norm|b_norm)$",), "a file of full differences (LyCORIS)", FORMS),
    Look((r"^lora_unet_(double|single)_blocks|^transformer\.(single_)?transformer_blocks.*lora",),
         "a LoRA for Flux"),
    Look((r"^lora_unet_(input|output|middle)_block.*lora", r"^lora_te2_"), "a LoRA for SDXL"),
    Look((r"^lora_unet_(down|up|mid)_block.*attentions.*lora", r"^lora_te2_"), "a LoRA for SDXL"),
    Look((r"^lora_unet_input_blocks_[478]_1_transformer_blocks_[1-9]",), "a LoRA for SDXL"),
    Look((r"^lora_unet_(down|up|mid)_block.*attentions.*lora",),
         "a LoRA for Stable Diffusion 1 or 2, or SDXL"),
    Look((r"(^|\.)(down|up|mid)_blocks?\..*attentions\..*lora",),
         "a LoRA for Stable Diffusion 1 or 2, or SDXL"),
    Look((r"^lora_(prior_)?unet_(down|up)_blocks_\d_\d+_.*(channelwise|attention_attn)",),
         "a LoRA for Stable Cascade's stage C in kohya's or OneTrainer's names", FORMS),
    Look((r"dora_scale|lora_magnitude_vector",), "a DoRA", FORMS),
    Look((r"(lora_A|lora_B)\.(default\.)?weight",), "a LoRA in PEFT's names", FORMS),
    Look((r"\.lora_(down|up)\.weight|\.lora\.(down|up)\.weight|processor\..*_lora\.",), "a LoRA", FORMS),
    Look((r"^(clip_g|clip_l|emb_params|string_to_param.*|<.*>)$",), "a textual inversion (new words)",
         "those for CLIP bigG alone (clip_g) are read"),
    # Whole networks
    Look((r"double_blocks\.\d+\.img_attn|single_transformer_blocks\.\d+\.attn\.norm_q",), "Flux"),
    Look((r"joint_blocks\.\d+\.(x_block|context_block)|transformer_blocks\.\d+\.attn\.add_q_proj",),
         "Stable Diffusion 3"),
    Look((r"conditioner\.embedders\.1\.model\.",), "SDXL, all in one"),
    Look((r"conditioner\.embedders\.0\.model\.",), "SDXL's refiner, all in one"),
    Look((r"^(model\.diffusion_model\.)?label_emb\.0\.0\.weight", r"input_blocks\."), "SDXL's UNet"),
    Look((r"add_embedding\.linear_1\.weight", r"down_blocks\.\d\.resnets"),
         "SDXL's UNet in diffusers' names"),
    Look((r"cond_stage_model\.model\.",), "Stable Diffusion 2, all in one"),
    Look((r"cond_stage_model\.transformer\.",), "Stable Diffusion 1, all in one"),
    Look((r"control_model\.|input_hint_block\.|controlnet_(down|cond)",),
         "a ControlNet of Stable Diffusion"),
    Look((r"(^|\.)input_blocks\.\d+\.", r"(^|\.)output_blocks\.\d+\."), "a UNet of Stable Diffusion"),
    Look((r"down_blocks\.\d\.(attentions|resnets)\.\d", r"up_blocks\.\d\.", r"time_embedding"),
         "a UNet of Stable Diffusion in diffusers' names"),
    Look((r"(^|\.)decoder\.up\.\d+\.block|decoder\.up_blocks\.\d\.resnets",),
         "a VAE of Stable Diffusion, SDXL or Flux",
         "Stable Cascade's stage A and EffNet encoder are needed"),
    Look((r"(^|\.)encoder\.block\.\d+\.layer\.\d\.",), "a T5 text encoder",
         "CLIP bigG's text tower is needed"),
    Look((r"visual\.transformer\.resblocks|vision_model\.encoder\.layers",),
         "a vision tower of CLIP of another make",
         "CLIP L/14's in transformers' names is needed"),
    Look((r"text_model\.encoder\.layers\.0\.", ), "a text tower of CLIP without its text_projection",
         "CLIP bigG's with its projection is needed"),
    Look((r"caption_projection|adaln_single",), "PixArt or a kind of it"),
    Look((r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)(\.|$)|^state\.\d+\.",), "an optimizer's state",
         "the model's own weights are needed"),
    Look((r"arcface|face|^backbone\.0\.weight", r"projections\.\d+\.0\.weight"),
         "Stable Cascade's ControlNet for faces",
         "it was withdrawn, and is not read"),
    Look((r"backbone\.0\.0\.weight",), "an EfficientNet backbone alone",
         "the EffNet encoder (with mapper.…) or a ControlNet (with projections.…) is needed"),
    Look((r"clip_txt_mapper\.weight|effnet_mapper\.0\.weight",), "a part of stage C or B of Stable Cascade",
         "all of its tensors are needed: a shard needs its index file beside it"),
    Look((r"Mixed_\d[a-e]\.branch",), "a part of Inception, by which FID is measured",
         "the whole file, pt_inception-2015-12-05, is needed"),
    Look((r"model\.layers\.\d+\.self_attn\.q_proj",), "a language model"),
    Look((r"^(conv1|layer1\.0\.conv1)\.weight",), "a ResNet"),
)  # fmt: skip


def look(keys: Iterable[str]) -> str:
    """What a file with these keys looks like and what is needed, or what is in it."""
    keys = list(keys)
    for kind in LOOKS:
        if all(any(re.search(pattern, key) for key in keys) for pattern in kind.patterns):
            return f"it looks like {kind.name}; {kind.needed}"
    some = ", ".join(f"{key:.60}" for key in sorted(keys)[:3])
    return f"it holds {len(keys)} tensors ({some}, …); {CASCADE}"


NO_WEIGHTS = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|random_states|rng_state|training_args|trainer_state"
    r"|sampler|train_state|global_step|events|tokenizer|config|args)([._-]?\w*)*"
)
"""Names of files beside weights that hold none."""


def is_beside_weights(name: str) -> bool:
    """Whether a file of this name is one that trainers write beside the weights."""
    return NO_WEIGHTS.fullmatch(name.partition(".")[0].lower()) is not None
