"""Files as people have them, seen as files in the layouts that the name tables read.

User interfaces put several networks in one file under prefixes, wrappers put prefixes before every key,
attention is packed in one file and split in the next, and 8-bit weights lie beside their scales. A `View`
is one tensor as a table wants it, made of one or several tensors of the file when it is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from ultrapixel_jax.layouts.files import FLOAT8, Spec, TensorFile

WRAPPERS = (
    "state_dict.", "module.", "model.", "net.", "ema_model.", "ema.", "unet.", "prior.", "decoder.",
    "stage_c.", "stage_b.", "text_encoder.", "vae.",
)  # fmt: skip
"""Prefixes that all keys of a file may share; they say nothing."""
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""What torch.compile and its like put anywhere in a key."""
PARTS = (
    "model.diffusion_model.", "diffusion_model.", "text_encoder.clip_g.", "clip_l_vision.", "vae.encoder.",
    "vae.previewer.", "vae.",
)  # fmt: skip
"""Prefixes of the networks in one file of ComfyUI, the longer first."""
VAE_PARTS, VAE = ("encoder.", "previewer."), r"encoder\.(backbone|mapper)\.|previewer\.blocks\."
"""Those in its files of an EffNet encoder and a previewer, and keys that tell such a file."""
EXTRAS = re.compile(
    r"(.*\.)?(scaled_fp8|logit_scale|n_averaged|comfy_quant|scale_input|input_scale|attn_mask)|mean|std"
)
"""Tensors that no network is made of."""
SCALE = re.compile(r"(.*\.)?logit_scale")


@dataclasses.dataclass(frozen=True)
class View:
    """One tensor, made of those of the file by `keys`."""

    keys: tuple[str, ...]
    spec: Spec
    make: Callable[..., np.ndarray]


Views = dict[str, View]


def networks(file: TensorFile) -> list[TensorFile]:
    """The networks in `file`, each as a file of its own in a layout that may be known."""
    views = {key: View((key,), spec, _same) for key, spec in file.specs.items()}
    views = _unwrapped(_scaled(views))
    parts = [
        p for part in _parts(views, PARTS) for p in _parts(part, VAE_PARTS, r"encoder\.(backbone|mapper)\.")
    ]
    scales = [View((key,), spec, _same) for key, spec in file.specs.items() if SCALE.fullmatch(key)]
    return [_as_file(file, _with_scale(_renamed(part), *scales[:1])) for part in parts]


def _with_scale(views: Views, scale: View | None = None) -> Views:
    """A whole CLIP with the scale of its cosines, which no other network has."""
    towers = {key.partition(".")[0] for key in views}
    if scale is None or not towers >= {"text_model", "vision_model"}:
        return views
    return {**views, "logit_scale": scale}


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _as_file(file: TensorFile, views: Views) -> TensorFile:
    def read(key: str) -> np.ndarray:
        view = views[key]
        made = np.ascontiguousarray(view.make(*(file.read(source) for source in view.keys)))
        return made.reshape(view.spec[0])  # NumPy's contiguous arrays have a dimension or more

    return dataclasses.replace(file, specs={key: view.spec for key, view in views.items()}, reader=read)


def _scaled(views: Views) -> Views:
    """8-bit floats as bfloat16, which holds each, or times their scale as float32."""
    out = {}
    for key, view in views.items():
        shape, dtype = view.spec
        stem = key.removesuffix("weight")
        scale = next((s for s in (f"{stem}scale_weight", f"{key}_scale") if s in views), None)
        if dtype not in FLOAT8.values():
            if not key.endswith(("scale_weight", "weight_scale")):
                out[key] = view
        elif scale is None or key.endswith("scale_weight"):
            bfloat16 = np.dtype(ml_dtypes.bfloat16)
            out[key] = View((key,), (shape, bfloat16), lambda x, to=bfloat16: x.astype(to))
        else:
            product = lambda x, s: x.astype(np.float32) * np.float32(s.reshape(()))  # noqa: E731
            if views[scale].spec[0] not in ((), (1,)):  # of every row
                product = lambda x, s: x.astype(np.float32) * s.astype(np.float32)  # noqa: E731
            out[key] = View((key, scale), (shape, np.dtype(np.float32)), product)
    return out


def _unwrapped(views: Views) -> Views:
    """Without what wrappers put before all keys, or anywhere; without what is no network's."""
    names = {}
    for key, view in views.items():
        name = key
        for infix in INFIXES:
            name = name.replace(infix, "")
        if not EXTRAS.fullmatch(name):
            names[name] = view
    while names:
        first = next(iter(names))
        shared = next((w for w in WRAPPERS if first.startswith(w) and _all_begin(names, w)), None)
        if shared is None or any(_all_begin(names, part) for part in PARTS if part.startswith(shared)):
            break
        names = {name.removeprefix(shared): view for name, view in names.items()}
    return names


def _all_begin(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _parts(views: Views, prefixes: tuple[str, ...], telling: str = "") -> list[Views]:
    """`views` by prefix, without it; all in one where none is there (or none that is `telling`)."""
    if telling and not any(re.match(telling, key) for key in views):
        return [views]
    parts: dict[str, Views] = {}
    for key, view in views.items():
        prefix = next((p for p in prefixes if key.startswith(p)), "")
        name = key.removeprefix(prefix)
        if not EXTRAS.fullmatch(name):
            parts.setdefault(prefix, {})[name] = view
    return list(parts.values())


# ---------------------------------------------------------------------------- names


def _renamed(views: Views) -> Views:
    """One network in the names that a table has, if it is in some that people have."""
    if "token_embedding.weight" in views and any(key.startswith("transformer.resblocks.") for key in views):
        return _open_clip(views)
    if views and all(key.startswith(("transformer.", "text_projection")) for key in views):
        views = {key.removeprefix("transformer."): view for key, view in views.items()}
    for embedding, prefix in (("token_embedding", "text_model."), ("patch_embedding", "vision_model.")):
        if f"embeddings.{embedding}.weight" in views:
            views = {
                key if "projection" in key.split(".")[0] else prefix + key: v for key, v in views.items()
            }
    if "text_projection" in views:  # (in, out)
        views = {**views, "text_projection.weight": _transposed(views["text_projection"])}
        del views["text_projection"]
    return _packed(views)


def _transposed(view: View) -> View:
    (rows, columns), dtype = view.spec
    return dataclasses.replace(view, spec=((columns, rows), dtype), make=lambda *xs: view.make(*xs).T)


def _packed(views: Views) -> Views:
    """Attention that ComfyUI split, packed again as released."""
    out = dict(views)
    for key in views:
        found = re.fullmatch(r"(.*\.attention\.attn\.)to_q\.(weight|bias)", key)
        three = [f"{found[1]}to_{x}.{found[2]}" for x in "qkv"] if found else []
        if found and all(name in views and len(views[name].keys) == 1 for name in three):
            q, k, v = (views[name] for name in three)
            if q.spec == k.spec == v.spec:
                shape = (3 * q.spec[0][0], *q.spec[0][1:])
                make = lambda *xs, parts=(q, k, v): np.concatenate(  # noqa: E731
                    [part.make(x) for part, x in zip(parts, xs, strict=True)]
                )
                keys = tuple(part.keys[0] for part in (q, k, v))
                out[f"{found[1]}in_proj_{found[2]}"] = View(keys, (shape, q.spec[1]), make)
                for name in three:
                    del out[name]
    return out


OPEN_CLIP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
OPEN_CLIP_PROJECTIONS = {
    "text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight",
}  # fmt: skip
"""These are (in, out)."""
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def _open_clip(views: Views) -> Views:
    """CLIP in open_clip's names to transformers'."""
    out: dict[str, View] = {}
    for key, view in views.items():
        layer = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", key)
        if key in OPEN_CLIP_PROJECTIONS:
            out[OPEN_CLIP_PROJECTIONS[key]] = _transposed(view)
        elif layer is None:
            out[OPEN_CLIP.get(key) or re.sub(r"^visual\.", "vision_model.", key)] = view
        else:
            tower = "vision_model" if layer[1] else "text_model"
            stem, name, leaf = f"{tower}.encoder.layers.{layer[2]}", layer[3], layer[4]
            if name != "attn.in_proj":
                out[f"{stem}.{OPEN_CLIP_LAYER.get(name, name)}.{leaf}"] = view
                continue
            shape = (view.spec[0][0] // 3, *view.spec[0][1:])
            for i, part in enumerate("qkv"):
                make: Any = lambda *xs, i=i, view=view: np.split(view.make(*xs), 3)[i]  # noqa: E731
                out[f"{stem}.self_attn.{part}_proj.{leaf}"] = View(view.keys, (shape, view.spec[1]), make)
    return out
