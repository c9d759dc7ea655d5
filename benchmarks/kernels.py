"""What an optimised HLO text for a GPU says of a program's kernels: the bytes that each moves, its products.

    found = kernels(compiled.as_text())

A kernel reads its operands and writes its results once: what of it lies in caches, and what a badly made
kernel reads twice, no text says. Of an operand of which a fusion takes a slice, the slice is counted, and of
a map that is updated in place, the part. Operations are those of matrix products and convolutions; all others
cost less than the memory that they wait for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from benchmarks.hlo import Instruction, nbytes, parse, shapes, turns

FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
    "replica-id", "while", "call", "conditional", "add-dependency", "opt-barrier", "domain", "async-start",
    "async-update",
    "async-done", "copy-done", "all-gather-done", "all-reduce-done", "collective-permute-done",
}  # fmt: skip
"""What runs no kernel of its own."""
SLICES = {"dynamic-slice", "slice", "gather"}
THROUGH = {"bitcast", "reshape"}
"""What changes nothing in memory, inside of a fusion."""
CALLS = {"while": ("body", "condition"), "call": ("to_apply",), "async-start": ("calls",)}
PRODUCTS = ("__cublas$gemm", "__cublas$lt$matmul")

Body = list[Instruction]
Computations = dict[str, Body]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that is in the program once, and runs `times`."""

    name: str
    kind: str
    """Of XLA: `fusion`, `custom-call`, …, or `product` where matrices are multiplied."""
    times: int
    moved: int
    """Bytes read and written each time."""
    operations: int
    """Of products and convolutions, each time."""
    where: str
    """The JAX operation that it comes from; empty where the compiler does not say."""

    def bound(self, bandwidth: float, rate: float) -> float:
        """Seconds of all its runs that no GPU of this bandwidth and matrix rate stays below."""
        return self.times * max(self.moved / bandwidth, self.operations / rate)


def kernels(text: str) -> list[Kernel]:
    """All kernels of a program, those in loops too.

    Raises:
        ValueError: no HLO text.
    """
    computations, entry = parse(text)
    out = []
    for name, times in _steps(computations, entry).items():
        body = computations[name]
        types = {at.name: at.type for at in body}
        for at in body:
            if at.opcode in FREE:
                continue
            operations = _operations(at, types, computations)
            kind = "product" if operations else at.opcode
            where = m[1] if (m := re.search(r'op_name="([^"]*)"', at.rest)) else ""
            out.append(Kernel(at.name, kind, times, _moved(at, types, computations), operations, where))
    return out


def operands(at: Instruction) -> list[str]:
    """Names of what an instruction takes, in order."""
    depth, given = 1, ""
    for c in at.rest:
        depth += (c in "({[") - (c in ")}]")
        if depth == 0:
            break
        given += c
    return re.findall(r"%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))", _without_types(given))


def _without_types(text: str) -> str:
    """Operands without the types that some versions write in front of them, and without nested commas."""
    text = re.sub(r"/\*.*?\*/", "", text)
    return re.sub(r"\b[a-z]\w*\[[^\]]*\](\{[^}]*\})?\s+", "", text)


def _steps(computations: Computations, entry: str) -> dict[str, int]:
    """How often each computation runs whose instructions are kernels: the entry, loops, calls, branches."""
    out: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        out[name] = out.get(name, 0) + times
        for at in computations[name]:
            loop = turns(computations, at.rest) if at.opcode == "while" else 1
            for called in _control(at):
                if called in computations:
                    visit(called, times * loop)

    visit(entry, 1)
    return out


def _control(at: Instruction) -> Iterator[str]:
    """Computations that an instruction runs kernel by kernel."""
    for key in CALLS.get(at.opcode, ()):
        if m := re.search(rf"{key}=%?([\w.\-]+)", at.rest):
            yield m[1]
    if at.opcode == "conditional":
        m = re.search(r"(?:branch_computations=\{([^}]*)\}|true_computation=(.*))", at.rest)
        yield from re.findall(r"%([\w.\-]+)", m[0]) if m else ()


# ---------------------------------------------------------------------------- bytes


def _moved(at: Instruction, types: Mapping[str, str], computations: Computations) -> int:
    """Bytes that a kernel reads and writes."""
    taken = list(dict.fromkeys(operands(at)))
    body = computations.get(m[1], ()) if (m := re.search(r"calls=%?([\w.\-]+)", at.rest)) else ()
    if at.opcode == "fusion" and body:
        order = operands(at)
        read = sum(_read(body, order.index(name), types.get(name, "")) for name in taken)
        return read + _written(body, at.type)
    if at.opcode in SLICES:
        return 2 * _size(at.type)
    if at.opcode == "dynamic-update-slice":
        return 2 * _size(types.get(operands(at)[1], ""))
    written = [s for s in shapes(at.type) if not _is_workspace(at, s)]
    return sum(_size(types.get(name, "")) for name in taken) + sum(map(nbytes, written))


def _read(body: Body, position: int, kind: str) -> int:
    """Bytes that a fusion reads of its operand at `position`, whose type is `kind`."""
    name = next((i.name for i in body if i.opcode == "parameter" and i.rest.startswith(f"{position})")), None)
    if name is None:
        return _size(kind)
    parts = 0
    for user, place in _users(body, name):
        if user.opcode in SLICES and place == 0:
            parts += _size(user.type)
        elif not (user.opcode == "dynamic-update-slice" and place == 0):
            return _size(kind)
    return min(parts, _size(kind))


def _users(body: Body, name: str) -> Iterator[tuple[Instruction, int]]:
    """Instructions that take `name`, itself or through bitcasts, and at which place."""
    for at in body:
        taken = operands(at) if at.opcode not in ("parameter", "constant") else []
        if name in taken:
            if at.opcode in THROUGH:
                yield from _users(body, at.name)
            else:
                yield at, taken.index(name)


def _written(body: Body, kind: str) -> int:
    """Bytes of a fusion's results; of one that is updated in place, those of the part."""
    by_name = {at.name: at for at in body}
    root = body[-1]
    results = [by_name[name] for name in operands(root)] if root.opcode == "tuple" else [root]
    total = 0
    for at in results:
        while at.opcode in THROUGH:
            at = by_name[operands(at)[0]]
        if at.opcode == "dynamic-update-slice":
            total += _size(by_name[operands(at)[1]].type)
        else:
            total += _size(at.type)
    return min(total, _size(kind))


def _size(kind: str) -> int:
    return sum(map(nbytes, shapes(kind)))


def _is_workspace(at: Instruction, shape: str) -> bool:
    """Whether a result of a library's call is its scratch memory."""
    return at.opcode == "custom-call" and at.type.startswith("(") and shape.startswith(("s8[", "u8["))


# ---------------------------------------------------------------------------- operations


def _operations(at: Instruction, types: Mapping[str, str], computations: Computations) -> int:
    """Operations of an instruction's products, and of those inside of it where it is a fusion."""
    if at.opcode == "dot":
        lhs = _dims(types.get(operands(at)[0], ""))
        contracted = m[1] if (m := re.search(r"lhs_contracting_dims=\{([\d,]*)\}", at.rest)) else ""
        return 2 * math.prod(_dims(at.type)) * _product(lhs, contracted.split(","))
    if at.opcode == "convolution":
        return 2 * math.prod(_dims(at.type)) * _taps(at, _dims(types.get(operands(at)[1], "")))
    if at.opcode == "custom-call":
        return _library(at, types)
    if at.opcode == "fusion" and (m := re.search(r"calls=%?([\w.\-]+)", at.rest)) and m[1] in computations:
        body = computations[m[1]]
        inside = {i.name: i.type for i in body}
        return sum(_operations(i, inside, computations) for i in body)
    return 0


def _library(at: Instruction, types: Mapping[str, str]) -> int:
    """Operations of a library's product, or of a Pallas kernel's, or of an attention kernel's."""
    target = m[1] if (m := re.search(r'custom_call_target="([^"]*)"', at.rest)) else ""
    taken = [_dims(types.get(name, "")) for name in operands(at)]
    if target.startswith(PRODUCTS):
        result = math.prod(_dims(shapes(at.type)[0]))
        return 2 * result * _product(taken[0], _contracted(at.rest))
    if "product_with_epilogue" in at.rest and len(taken) >= 2:  # `models.pallas_mlp`
        (b, n, depth), (*_, features) = taken[:2]
        return 2 * b * n * depth * features
    if "attention" in at.rest and len(taken) >= 3 and all(len(dims) == 4 for dims in taken[:3]):
        (b, n, heads, width), (_, m_, *_rest) = taken[0], taken[1]
        return 4 * b * heads * n * m_ * width
    return 0


def _contracted(rest: str) -> list[str]:
    """The left side's summed axes, in a library product's configuration."""
    m = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', rest)
    return [str(axis) for axis in json.loads(m[1])] if m else []


def _taps(at: Instruction, kernel: Sequence[int]) -> int:
    """Products behind each value of a convolution's result: the kernel without its output features."""
    m = re.search(r"dim_labels=\w+_(\w+)->", at.rest)
    features = kernel[m[1].index("o")] if m and kernel else 1
    return math.prod(kernel) // max(1, features)


def _dims(kind: str) -> list[int]:
    m = re.match(r"\(?[a-z]\w*\[([^\]]*)\]", kind)
    return [int(n.removeprefix("<=")) for n in m[1].split(",") if n] if m else []


def _product(dims: Sequence[int], axes: Iterable[str]) -> int:
    return math.prod(dims[int(axis)] for axis in axes if axis.strip())
