"""What an optimised HLO text says of a program: its collectives, how often they run and what they move.

    found = collectives(compiled.as_text())

The text is XLA's: computations of instructions, one computation the entry. A loop's body runs as often as the
compiler knows (`known_trip_count`); where it does not know, such as a sampler's steps, once is counted.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
BITS = {"pred": 8, "c64": 64, "c128": 128}
"""Of dtypes whose name does not end in its bits; subnormal formats such as f8e4m3fn begin with them."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    type: str
    """Shape, or a tuple of them in parentheses."""
    rest: str
    """Operands and attributes: everything behind the opcode's opening parenthesis."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective that is in the program once, and runs `times`."""

    kind: str
    """One of `KINDS`."""
    shapes: str
    """What it gives each device, without layouts."""
    group: int
    """Devices that take part together; 2 for a permutation."""
    times: int
    """How often it runs, loops counted where their length is known."""
    received: int
    """Bytes that a device receives each time, where devices pass parts on in a ring."""
    where: str
    """The JAX operation that it comes from; empty where the compiler does not say."""


@dataclasses.dataclass(frozen=True)
class Total:
    """Collectives of one kind."""

    count: int
    """Runs of all of them."""
    received: int
    """Bytes that each device receives in all of them."""


def totals(found: Sequence[Collective]) -> dict[str, Total]:
    """Sums by kind, in the order of `KINDS`; kinds that do not occur are left out."""
    out = {}
    for kind in KINDS:
        of = [c for c in found if c.kind == kind]
        if of:
            out[kind] = Total(sum(c.times for c in of), sum(c.times * c.received for c in of))
    return out


def collectives(text: str) -> list[Collective]:
    """All collectives of a program, those in loops and called computations too.

    Raises:
        ValueError: no HLO text.
    """
    computations, entry = parse(text)
    partitions = int(m[1]) if (m := re.search(r"num_partitions=(\d+)", text)) else 1
    out, in_parts, counted = [], _in_parts(computations), set()
    for name, times in _runs(computations, entry).items():
        body = computations[name]
        for at in body:
            kind = at.opcode.removesuffix("-start")
            if kind not in KINDS or (channel := _channel(at)) in counted:
                continue
            counted |= {channel} & in_parts
            given = _result(at)
            size, group = sum(map(nbytes, shapes(given))), _group(at.rest, partitions)
            if kind == "all-reduce" and _scatters(name, body):
                kind, size = "reduce-scatter", size // group
            where = m[1] if (m := re.search(r'op_name="([^"]*)"', at.rest)) else ""
            text_of = ", ".join(re.sub(r"\{[^}]*\}", "", s) for s in shapes(given))
            out.append(Collective(kind, text_of, group, times, received(kind, size, group), where))
    return out


def _channel(at: Instruction) -> str:
    """Number of a collective's channel, "" without one."""
    return m[1] if (m := re.search(r"channel_id=(\d+)", at.rest)) else ""


def _in_parts(computations: dict[str, list[Instruction]]) -> set[str]:
    """Channels of collectives that TPUs run in parts beside other work, each in a fusion of its own."""
    return {
        _channel(at)
        for name, body in computations.items()
        for at in body
        if name.startswith("async_collective_fusion") and at.opcode in KINDS
    } - {""}


def received(kind: str, size: int, group: int) -> int:
    """Bytes that each of `group` devices receives in a ring, of a result of `size` bytes on each."""
    if kind == "reduce-scatter":
        return size * (group - 1)
    if kind == "all-reduce":
        return 2 * size * (group - 1) // group
    if kind.startswith("collective"):
        return size
    return size * (group - 1) // group


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions by computation, and the entry's name.

    Raises:
        ValueError: there is no entry.
    """
    out: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            current = None
            if (m := re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line.rstrip())) is not None:
                current = out.setdefault(m[2], [])
                entry = m[2] if m[1] else entry
        elif (m := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)) is not None:
            kind, rest = _type(line[m.end() :])
            if (op := re.match(r"([\w\-]+)\(", rest)) is not None:
                current.append(Instruction(m[1], op[1], kind, rest[op.end() :]))
    if not entry:
        raise ValueError("this is no HLO text: it has no entry computation")
    return out, entry


def shapes(kind: str) -> list[str]:
    """The arrays of a type, without its parentheses: `(f32[2]{0}, u32[])` has two."""
    return re.findall(r"\b[a-z]\w*\[[^\]]*\](?:\{[^}]*\})?", kind)


def nbytes(shape: str) -> int:
    """Bytes of an array such as `bf16[2,1024]{1,0}`, without padding."""
    m = re.match(r"([a-z]\w*)\[([^\]]*)\]", shape)
    assert m is not None, shape
    bits = BITS.get(m[1]) or int(re.sub(r"^[a-z]+(\d+).*$", r"\1", m[1]))
    return math.prod(int(n.removeprefix("<=")) for n in m[2].split(",") if n) * bits // 8


def _type(text: str) -> tuple[str, str]:
    """The type at the beginning of `text`, and what follows it."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[: i + 1], text[i + 2 :]
    raise ValueError(f"a tuple is not closed: {text:.80}")


def _result(at: Instruction) -> str:
    """The type of what a collective gives: the start of an asynchronous one carries its operands along."""
    if not at.opcode.endswith("-start") or at.opcode.startswith("all-reduce"):
        return at.type
    parts = list(_parts(at.type[1:-1]))
    return parts[1]


def _parts(text: str) -> Iterator[str]:
    """Members of a tuple's type, split at its own commas."""
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            yield text[start:i].strip()
            start = i + 1
    yield text[start:].strip()


def _group(rest: str, partitions: int) -> int:
    """Devices of one group, from any of the ways in which groups are written."""
    if "source_target_pairs=" in rest:
        return 2
    if (at := rest.find("replica_groups=")) < 0:
        return partitions
    text = rest[at + len("replica_groups=") :]
    if text.startswith("{}"):
        return partitions
    if m := re.match(r"\{\{([\d,]+)\}", text):
        return m[1].count(",") + 1
    if m := re.match(r"\[\d+,(\d+)\]", text):
        return int(m[1])
    # Axes of a mesh, whole or, as 'axis':(before)size, a part of one.
    if m := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? ?\{([^}]*)\}", text):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", m[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", m[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    raise ValueError(f"replica groups {text[:80]!r} are not understood")


def _scatters(computation: str, body: Sequence[Instruction]) -> bool:
    """Whether a fused all-reduce keeps a slice alone, as TPUs write a reduce-scatter."""
    return computation.startswith("all-reduce-scatter") and any(i.opcode == "dynamic-slice" for i in body)


def _runs(computations: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs, by name."""
    out: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        out[name] = out.get(name, 0) + times
        for at in computations[name]:
            loop = turns(computations, at.rest) if at.opcode == "while" else 1
            for called in _called(at.rest):
                if called in computations:
                    visit(called, times * loop)

    visit(entry, 1)
    return out


def turns(computations: dict[str, list[Instruction]], rest: str) -> int:
    """How often a loop's body runs: as noted, or up to the constant that its counter is compared with.

    1 where neither is known, as in a sampler's loop over steps. The TPU's compiler leaves no note; jax's
    scans count from 0, by 1.
    """
    if m := re.search(r'known_trip_count":\{"n":"(\d+)"', rest):
        return int(m[1])
    m = re.search(r"condition=%?([\w.\-]+)", rest)
    condition = computations.get(m[1], []) if m else []
    constants = {at.name: at.rest for at in condition if at.opcode == "constant"}
    if condition and condition[-1].opcode == "compare" and "direction=LT" in condition[-1].rest:
        names = re.findall(r"%?([\w.\-]+)", condition[-1].rest.partition(")")[0])
        for name in names:
            if name in constants and (n := re.match(r"(\d+)\)", constants[name])):
                return int(n[1])
    return 1


def _called(rest: str) -> list[str]:
    """Computations that an instruction runs."""
    names = re.findall(r"(?:calls|body|condition|to_apply|(?:true|false)_computation)=%?([\w.\-]+)", rest)
    for group in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", rest):
        names += re.findall(r"%?([\w.\-]+)", group)
    return names
