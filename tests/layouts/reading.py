"""What the tests of reading files share: every type and layout of tensor, and refusals."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.layouts.files import TensorFile, find_files

BF16 = np.dtype(ml_dtypes.bfloat16)


def one(path: Path) -> TensorFile:
    (file,) = find_files([path])
    return file


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().view(BF16)
    return tensor.detach().numpy()


def assert_same(array: np.ndarray, expected: np.ndarray) -> None:
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    assert array.flags.c_contiguous
    assert array.tobytes() == expected.tobytes()


def refused(path: Path, *words: str) -> str:
    """The one-line UserError that `path` gives, which names it and has `words`."""
    with pytest.raises(UserError) as caught:
        file = one(path)
        for key in file.specs:
            file.read(key)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message, message
    for word in words:
        assert word in message, message
    return message


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(48.0).reshape(6, 8)
    return {
        "float": torch.randn(3, 5),
        "bf16": torch.randn(7, 2).to(torch.bfloat16),
        "half": torch.randn(4).half(),
        "double": torch.randn(2, 2, 2).double(),
        "long": torch.tensor([2**40, -1]),
        "int": torch.tensor([1, -2], dtype=torch.int32),
        "short": torch.tensor([1, -2], dtype=torch.int16),
        "char": torch.tensor([1, -2], dtype=torch.int8),
        "byte": torch.tensor([1, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "whole": base,
        "transposed": base.T,
        "every_other": base[1:, ::2],
        "tail": base[4:],
        "expanded": base[0].expand(3, 8),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
