"""Made `measures.safetensors`: what torch-fidelity 0.4.0, torchmetrics 1.9.0 and clean-fid 0.1.35 compute.

    pip install --no-deps --target DIR torch-fidelity torchmetrics lightning-utilities clean-fid
    PYTHONPATH=DIR python -m tests.golden.make_measures

They want torchvision, which does not go with torch's CPU build; nothing that is recorded here uses it, so that a
stand-in does. Hence no imports at the top, and no test installs them.
"""

import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import save_file

from ultrapixel_jax.checkpoints.named_weights import state_dict

ABSENT = [f"torchvision{name}" for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models")]
sys.modules.update({name: mock.MagicMock(__spec__=None) for name in ABSENT})


def inception():
    """torch-fidelity's network with weights made from names."""
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with (
        mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: None),
        mock.patch.object(kind, "load_state_dict", lambda *_: None),
    ):
        net = kind("inception", ["2048", "logits_unbiased"])
    shapes = {key: tuple(x.shape) for key, x in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(x) for key, x in state_dict(shapes).items()})
    return net, shapes


def main():
    out = {}
    rng = np.random.default_rng(0)
    net, shapes = inception()
    picture = np.kron(rng.integers(0, 256, (2, 3, 12, 10)), np.ones((10, 9), int))
    picture = np.clip(picture + rng.integers(-40, 40, picture.shape), 0, 255).astype(np.uint8)
    with torch.no_grad():
        features, logits = net(torch.from_numpy(picture))
    out |= {"in.picture": picture, "out.features": features.numpy(), "out.logits": logits.numpy()}

    tensorflow = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
    resize = tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    out["out.fidelity"] = resize(torch.from_numpy(picture).float(), size=(37, 37), align_corners=False).numpy()
    clean = importlib.import_module("cleanfid.resize").make_resizer("PIL", False, "bicubic", (37, 37))
    out["out.clean"] = np.stack([np.moveaxis(clean(np.moveaxis(x, 0, -1)), -1, 0) for x in picture])

    def features_of(n, shift):
        mix = rng.normal(size=(16, 16)) / 4
        return np.abs(rng.normal(size=(n, 16)) @ mix + shift)

    ours, theirs, classes = features_of(120, 0.1), features_of(100, 0.3), 2 * rng.normal(size=(105, 20))
    out |= {"in.ours": ours, "in.theirs": theirs, "in.logits": classes}
    x, y, z = (torch.from_numpy(v) for v in (ours, theirs, classes))
    fid = importlib.import_module("torch_fidelity.metric_fid")
    moments = [fid.fid_features_to_statistics(v) for v in (x, y)]
    found = fid.fid_statistics_to_metric(*moments, False)
    kid = importlib.import_module("torch_fidelity.metric_kid").kid_features_to_metric
    found |= kid(x, y, kid_subset_size=50, verbose=False)
    found |= importlib.import_module("torch_fidelity.metric_isc").isc_features_to_metric(z)

    for name in ABSENT:
        del sys.modules[name]  # torchmetrics does without
    metrics = importlib.import_module("torchmetrics.image.fid")._compute_fid
    covariances = [torch.cov(v.T) for v in (x, y)]
    found["torchmetrics_fid"] = metrics(x.mean(0), covariances[0], y.mean(0), covariances[1]).item()
    poly = importlib.import_module("torchmetrics.image.kid").poly_mmd
    found["torchmetrics_kid_of_100"] = poly(x[:100], y).item()
    metadata = {"shapes": json.dumps(shapes), "found": json.dumps(found)}
    contents = {key: np.ascontiguousarray(value) for key, value in out.items()}
    save_file(contents, Path(__file__).parent / "measures.safetensors", metadata)
    print(found)


if __name__ == "__main__":
    main()
