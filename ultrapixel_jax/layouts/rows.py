"""The vocabulary of the name tables: a row, and the changes of layout that it can name.

A row pairs a pattern of keys in a released file with one or more patterns of paths in our variables.
Both sides share placeholders such as ``{l}`` that stand for a number, so one row reads both ways:

    Row("down_blocks.{l}.{n}.depthwise.weight", "down_{l}/layer_{n}/depthwise/kernel", DEPTHWISE)

Paths are relative to ``params`` unless they begin with ``batch_stats/``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of layout: `forward` from the file's tensor to our arrays, `inverse` back, both exact.

    Forward gives one array per target path of the row. Both work on shapes alone as well as on data
    because they only transpose, reshape, split and concatenate.
    """

    name: str
    forward: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    inverse: Callable[..., np.ndarray]


def _axes(name: str, *axes: int) -> Layout:
    back = tuple(int(i) for i in np.argsort(axes))
    return Layout(name, lambda x: (x.transpose(axes),), lambda x: x.transpose(back))


AS_IS = Layout("as is", lambda x: (x,), lambda x: x)
"""Biases, norm scales, embeddings: the same array."""
LINEAR = _axes("(out, in) -> (in, out)", 1, 0)
CONV = _axes("(out, in, kh, kw) -> (kh, kw, in, out)", 2, 3, 1, 0)
"""Convolutions that stay convolutions."""
CONV_TRANSPOSED = _axes("(in, out, kh, kw) -> (kh, kw, in, out)", 2, 3, 0, 1)
"""torch's ConvTranspose2d; taps keep torch's order."""
POINTWISE = Layout(
    "(out, in, 1, 1) -> (in, out)",
    lambda x: (x.reshape(x.shape[:2]).transpose(1, 0),),
    lambda x: x.transpose(1, 0).reshape(x.shape[1], x.shape[0], 1, 1),
)
"""1×1 convolutions, which are linear layers over channels here."""
DEPTHWISE = Layout(
    "(c, 1, kh, kw) -> (kh, kw, c)",
    lambda x: (x.reshape(x.shape[0], *x.shape[2:]).transpose(1, 2, 0),),
    lambda x: x.transpose(2, 0, 1).reshape(x.shape[2], 1, *x.shape[:2]),
)
FLATTEN = Layout(
    "(1, 1, 1, c) -> (c,)",
    lambda x: (x.reshape(x.shape[-1]),),
    lambda x: x.reshape(1, 1, 1, x.shape[0]),
)
"""GRN's gamma and beta."""


def split_rows(parts: int) -> Layout:
    """`parts` linear layers stacked along the output axis (packed q, k, v), each turned to (in, out)."""
    return Layout(
        f"({parts}·out, in) -> {parts} × (in, out)",
        lambda x: tuple(p.transpose(1, 0) for p in np.split(x, parts)),
        lambda *xs: np.concatenate([x.transpose(1, 0) for x in xs]),
    )


def split_vector(parts: int) -> Layout:
    """`parts` biases stacked in one vector."""
    return Layout(
        f"({parts}·out,) -> {parts} × (out,)",
        lambda x: tuple(np.split(x, parts)),
        lambda *xs: np.concatenate(xs),
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    `source` is a key pattern; `target` one or several path patterns, or None for a tensor that is no
    parameter (a counter, position ids): it is kept aside verbatim, and written back on export. A row
    with `optional` set may have no tensor in the file at all.
    """

    source: str
    target: str | tuple[str, ...] | None
    layout: Layout = AS_IS
    optional: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The target patterns as a tuple."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else self.target

    def match_source(self, key: str) -> dict[str, str] | None:
        """The placeholders' numbers if `key` fits the source pattern."""
        found = regex(self.source).fullmatch(key)
        return found.groupdict() if found else None

    def match_target(self, path: str) -> dict[str, str] | None:
        """The placeholders' numbers if `path` fits the first target pattern."""
        found = regex(self.targets[0]).fullmatch(path) if self.targets else None
        return found.groupdict() if found else None


_REGEXES: dict[str, re.Pattern[str]] = {}


def regex(pattern: str) -> re.Pattern[str]:
    """What fits `pattern`, whose placeholders are numbers and groups of its own."""
    if pattern not in _REGEXES:
        parts = re.split(r"\{(\w+)\}", pattern)
        text = "".join(
            re.escape(part) if i % 2 == 0 else rf"(?P<{part}>\d+)" if part not in parts[1:i:2]
            else rf"(?P={part})" for i, part in enumerate(parts)
        )  # fmt: skip
        _REGEXES[pattern] = re.compile(text)
    return _REGEXES[pattern]


def fill(pattern: str, numbers: dict[str, str]) -> str:
    """`pattern` with its placeholders replaced by `numbers`."""
    return re.sub(r"\{(\w+)\}", lambda m: numbers[m[1]], pattern)


def linear(source: str, target: str, bias: bool = True) -> tuple[Row, ...]:
    """Rows of a linear layer: `{source}.weight` and `.bias` to `{target}/kernel` and `/bias`."""
    rows = (Row(f"{source}.weight", f"{target}/kernel", LINEAR),)
    return (*rows, Row(f"{source}.bias", f"{target}/bias")) if bias else rows


def conv(source: str, target: str, layout: Layout = CONV, bias: bool = True) -> tuple[Row, ...]:
    """Rows of a convolution, `layout` being CONV, CONV_TRANSPOSED, POINTWISE or DEPTHWISE."""
    rows = (Row(f"{source}.weight", f"{target}/kernel", layout),)
    return (*rows, Row(f"{source}.bias", f"{target}/bias")) if bias else rows


def norm(source: str, target: str) -> tuple[Row, ...]:
    """Rows of a layer norm with scale and bias."""
    return (Row(f"{source}.weight", f"{target}/scale"), Row(f"{source}.bias", f"{target}/bias"))


def batch_norm(source: str, target: str, affine: bool = True) -> tuple[Row, ...]:
    """Rows of a batch norm: statistics go to `batch_stats`, the counter is kept aside."""
    rows = (
        Row(f"{source}.running_mean", f"batch_stats/{target}/mean"),
        Row(f"{source}.running_var", f"batch_stats/{target}/var"),
        Row(f"{source}.num_batches_tracked", None, optional=True),
    )
    return (*norm(source, target), *rows) if affine else rows
