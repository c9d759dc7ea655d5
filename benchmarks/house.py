"""The package as a house: its rooms, what they import, their sizes; and its picture.

    python -m benchmarks.house [--root DIRECTORY] [--svg docs/house.svg]

A room is a folder of the package, or a module that stands loose in it. An arrow leads from a room to one
that it imports from, at the top of a file or inside a function. `STOREYS` says who may import whom, which
`tests/test_house.py` keeps true.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from ultrapixel_jax import commands

PACKAGE = "ultrapixel_jax"
ROOT = Path(__file__).parent.parent
LONGEST = 8
"""Files that the command lists."""

STOREYS: tuple[Mapping[str, str], ...] = (
    {
        "errors": "what a user reads",
        "commands": "command lines",
        "config": "every size and setting",
        "sizes": "pixels to latents, buckets",
        "sharding": "what lies where on a mesh",
        "flops": "operations, counted",
        "report": "time and memory",
        "files": "full disks, fingerprints",
        "meeting": "before jax connects",
        "processes": "joining and ending together",
        "target": "platforms, while tracing",
    },
    {
        "models": "stages A, B, C · guidance (INR, fusion, SAN) · encoders · LoRA · ControlNet",
        "compilation": "compiler options · kept programs",
        "controls": "edges · masks",
    },
    {
        "diffusion": "schedules · loss · samplers · the two-branch sampler",
        "checkpoints": "directory · manifest · weights · tokenizer",
    },
    {
        "data": "pictures · building · buckets · reading · cached latents",
        "layouts": "files of others: reading · names of their tensors · LoRA",
    },
    {"sampling": "stages · pipeline · requests · conditions · pictures · tiling · export"},
    {"evaluate": "FID, KID, IS · CLIP score, PickScore · features · reports"},
    {"training": "tasks · step · optimizer · state · checkpoints of a run · machines · log"},
    {"": "the public API"},
    {
        "demo": "world: scenes, drawing, captions · measure: detector, scores, ablations",
        "web": "server · queue · gallery · tiles · page",
    },
)
"""From the ground up: rooms and what they hold. A room imports from storeys below; on the ground floor also
from beside, without circles. The room without a name is the package's own `__init__`."""

SCRIPTS = ("train.py", "sample.py", "convert", "benchmarks", "configs", "tests")
"""What stands on the roof: nothing in the house imports it."""


def modules(root: Path) -> dict[str, Path]:
    """File of every module of the package under `root`, by dotted name."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imported(path: Path) -> Iterator[str]:
    """Dotted names that the file at `path` imports, anywhere in it; `from a import b` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(root: Path) -> dict[str, set[str]]:
    """The package's own modules that each of its modules imports."""
    known = modules(root)
    found = {name: set(imported(path)) for name, path in known.items()}
    return {
        name: {owner for target in targets if (owner := _module(target, known)) and owner != name}
        for name, targets in found.items()
    }


def _module(target: str, known: Mapping[str, Path]) -> str | None:
    """The module that `target` is or comes from; None for others' and for `__version__`, which needs none."""
    owner, _, name = target.rpartition(".")
    if target in known:
        return target
    return owner if owner in known and not name.startswith("__") else None


def room(module: str) -> str:
    """The room in which `module` stands."""
    return module.split(".")[1] if "." in module else ""


def storey(name: str) -> int:
    """The storey of a room, from 0; raises `KeyError` for a room that `STOREYS` does not have."""
    for level, rooms in enumerate(STOREYS):
        if name in rooms:
            return level
    raise KeyError(f"room {name!r} is on no storey of benchmarks/house.py")


def sizes(root: Path) -> str:
    """Rooms, arrows and longest files, as Markdown."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(root).items()}
    number, length = Counter(map(room, lines)), Counter[str]()
    for name, count in lines.items():
        length[room(name)] += count
    doors = [
        (room(a), room(b)) for a, targets in imports(root).items() for b in targets if room(a) != room(b)
    ]
    table = ["| room | modules | lines |", "|---|---|---|"]
    table += [f"| {name or '(package)'} | {number[name]} | {length[name]} |" for name in sorted(number)]
    table += ["", f"{len(number)} rooms, {len(set(doors))} arrows between them from {len(doors)} imports", ""]
    longest = sorted(lines, key=lambda name: -lines[name])[:LONGEST]
    return "\n".join(table + [f"{lines[name]:5} {name}" for name in longest])


# ---------------------------------------------------------------------------- the picture


SVG = "http://www.w3.org/2000/svg"
WIDTH, LEVEL, LEFT, EAVES = 960, 74, 40, 150
WALLS = ("#f7f1e6", *("#eef3fb",) * 5, "#fdf1e0", "#fdf1e0", "#e9f5ea")


def svg() -> str:
    """The house as a picture: storeys from the ground up, the scripts under the roof."""
    height = EAVES + LEVEL * len(STOREYS) + 30
    middle = LEFT + WIDTH / 2
    roof = f"M{LEFT - 25} {EAVES} L{middle} 20 L{LEFT + WIDTH + 25} {EAVES} z"
    font = "Helvetica, Arial, sans-serif"
    parts = [
        f'<svg xmlns="{SVG}" viewBox="0 0 {WIDTH + 2 * LEFT} {height}" font-family="{font}">',
        f'<rect width="{WIDTH + 2 * LEFT}" height="{height}" fill="white"/>',
        f'<path d="{roof}" fill="#f3dcd3" stroke="#a5604a" stroke-width="1.5"/>',
        _text(middle, 92, "scripts", 15, bold=True),
        _text(middle, 112, "sample.py · train.py · convert/ · benchmarks/", 12),
        _text(middle, 130, "imported by nothing below", 11),
    ]
    for level, rooms in enumerate(STOREYS):
        y = EAVES + LEVEL * (len(STOREYS) - 1 - level)
        share = WIDTH / len(rooms)
        for i, (name, holds) in enumerate(rooms.items()):
            x = LEFT + i * share
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{share:.0f}" height="{LEVEL}" fill="{WALLS[level]}" '
                'stroke="#4a6fa5" stroke-width="1.5"/>'
            )
            lines = _wrapped(holds, int(share / 7.5))
            top = y + LEVEL / 2 - 7 * len(lines) + 6
            parts.append(_text(x + share / 2, top, name or PACKAGE, 14, bold=True))
            parts += [_text(x + share / 2, top + 16 + 14 * n, line, 11.5) for n, line in enumerate(lines)]
    ground = EAVES + LEVEL * len(STOREYS)
    parts.append(
        f'<path d="M{LEFT - 25} {ground} H{LEFT + WIDTH + 25}" stroke="#6b7a4f" stroke-width="3"/>'
        + _text(middle, ground + 20, "each room imports from the storeys below it", 11.5)
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _wrapped(text: str, letters: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > letters and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _text(x: float, y: float, text: str, size: float, *, bold: bool = False) -> str:
    look = 'font-weight="600" fill="#1c2b40"' if bold else 'fill="#4b5b70"'
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" font-size="{size}" {look}>{escape(text)}</text>'
    )


def main(argv: list[str] | None = None) -> int:
    """Print the sizes, or write the picture; returns the exit code."""
    p = commands.Parser("python -m benchmarks.house", __doc__)
    p.option("--root", Path, "of another checkout", ROOT, shown="this one", metavar="DIR")
    p.option("--svg", Path, "where the picture is written", metavar="FILE")

    def run() -> None:
        o = p.read(argv)
        if o.svg:
            o.svg.write_text(svg(), encoding="utf-8")
        else:
            print(sizes(o.root))

    return commands.run(run, interrupted="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
