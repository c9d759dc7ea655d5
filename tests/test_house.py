"""The plan of the package: no import runs up or in a circle, rooms stay small, imports are declared."""

import graphlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from benchmarks import house

ROOT = house.ROOT
IMPORTS = house.imports(ROOT)
LOOSE = 10
"""Modules that may stand beside the rooms, with the package's own."""
LINES = 450


def files() -> list[Path]:
    folders = ("ultrapixel_jax", "convert", "benchmarks", "configs", "tests")
    return [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]


def test_no_import_runs_up() -> None:
    up = [
        f"{module} imports {target}"
        for module, targets in IMPORTS.items()
        for target in targets
        if (a := house.room(module)) != (b := house.room(target))
        and house.storey(a) <= house.storey(b)
        and house.storey(b) > 0  # the ground floor is one room with many doors
    ]
    assert not up
    outside = [
        f"{module} imports {name}"
        for module, path in house.modules(ROOT).items()
        for name in house.imported(path)
        if name.split(".")[0] in {script.removesuffix(".py") for script in house.SCRIPTS}
    ]
    assert not outside


def test_drawing_starts_without_scipy() -> None:
    """Half a second of imports that a plain picture has no use for: only functions may import it there."""
    seen, waiting = set[str](), ["ultrapixel_jax.sampling.ultrapixel"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += IMPORTS[module]
    assert {"ultrapixel_jax.sampling.canvas", "ultrapixel_jax.controls.canny"} <= seen
    late = re.compile(r"^(?:import|from) scipy", re.MULTILINE)
    paths = house.modules(ROOT)
    assert not [module for module in seen if late.search(paths[module].read_text())]


def test_no_import_runs_in_a_circle() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises for a circle, and names it


def test_a_circle_and_an_import_that_runs_up_would_be_seen(tmp_path: Path) -> None:
    package = tmp_path / "ultrapixel_jax"
    (package / "models").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "sizes.py": "def later():\n    from ultrapixel_jax.models import blocks\n",
        "models/__init__.py": "",
        "models/blocks.py": "from ultrapixel_jax.sizes import later\nimport jax.numpy as jnp\n",
    }.items():
        (package / name).write_text(text)
    found = house.imports(tmp_path)
    assert found["ultrapixel_jax.sizes"] == {"ultrapixel_jax.models.blocks"}
    assert found["ultrapixel_jax.models.blocks"] == {"ultrapixel_jax.sizes"}
    assert house.storey(house.room("ultrapixel_jax.sizes")) < house.storey("models")


def test_rooms_and_files_stay_small() -> None:
    loose = [path.name for path in (ROOT / house.PACKAGE).glob("*.py")]
    assert len(loose) <= LOOSE, loose
    long = [
        str(path.relative_to(ROOT))
        for path in files()
        if len(path.read_text(encoding="utf-8").splitlines()) > LINES
    ]
    assert not long
    assert not [path for path in files() if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_every_import_is_declared() -> None:
    """What is not declared is there by chance, because something else depends on it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    owners = importlib.metadata.packages_distributions()
    own = {house.PACKAGE, *(script.removesuffix(".py") for script in house.SCRIPTS)}

    def names(*requirements: str) -> set[str]:
        return {normal(re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0]) for r in requirements}

    def normal(name: str) -> str:
        return name.lower().replace("_", "-")

    optional = project["optional-dependencies"]
    of_all = names(*project["dependencies"], *optional["parquet"], *optional["plots"], *optional["gcs"])
    of_tests = of_all | names(*optional["test"], *optional["launch"], *optional["browser"])
    missing = []
    for path in files():
        by_users = path.relative_to(ROOT).parts[0] not in ("benchmarks", "tests")
        declared = of_all if by_users else of_tests
        for top in {name.split(".")[0] for name in house.imported(path)} - own - sys.stdlib_module_names:
            if not declared & {normal(owner) for owner in owners.get(top, [top])}:
                missing.append(f"{path.relative_to(ROOT)}: {top}")
    assert not missing


def test_the_picture_is_drawn_from_the_plan() -> None:
    assert (ROOT / "docs" / "house.svg").read_text(encoding="utf-8") == house.svg()


def test_sections_that_docstrings_name_are_there() -> None:
    """`§n` is a section of docs/specification.md."""
    page = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
    written = set(re.findall(r"^## (\d+)\.", page, re.MULTILINE))
    named = {n for path in files() for n in re.findall(r"§(\d+)", path.read_text(encoding="utf-8"))}
    assert named and named <= written
