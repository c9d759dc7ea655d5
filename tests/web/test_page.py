"""The page without a browser: what it names is there, and its rules for content allow it.

In a browser: `python -m tests.web.in_browser`.
"""

from __future__ import annotations

import re
from pathlib import Path

from ultrapixel_jax import web
from ultrapixel_jax.sampling.requests import SETTINGS

PAGE = Path(web.__file__).parent / "page"
HTML = (PAGE / "index.html").read_text(encoding="utf-8")
OWN = [path for path in PAGE.glob("*.js") if ".min." not in path.name]
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in OWN}


def test_every_part_that_is_named_is_there() -> None:
    named = {*re.findall(r'(?:src|href)="page/([^"]+)"', HTML)}
    named |= {name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    present = {path.name for path in PAGE.iterdir()}
    assert named <= present
    assert present - named == {"index.html", "openseadragon.LICENSE.txt"}
    assert "Redistribution and use" in (PAGE / "openseadragon.LICENSE.txt").read_text()


def test_every_element_that_scripts_look_for_is_there() -> None:
    ids = re.findall(r'\bid="([^"]+)"', HTML)
    assert len(ids) == len({*ids})
    sought = {name for text in SCRIPTS.values() for name in re.findall(r'\$\("([^"]+)"\)', text)}
    assert sought and sought <= {*ids}


def test_every_name_that_is_imported_is_exported() -> None:
    for text in SCRIPTS.values():
        for names, module in re.findall(r'import \{ ([^}]+) \} from "\./([^"]+)"', text):
            for name in names.split(","):
                declared = rf"export (?:async )?(?:function|const) {re.escape(name.strip())}[ (]"
                assert re.search(declared, SCRIPTS[module]), name


def test_nothing_that_the_rules_for_content_forbid() -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", HTML)
    assert not re.search(r"<script(?![^>]*\bsrc=)", HTML)
    assert not re.search(r"https?://(?!www\.w3\.org/)", HTML + "".join(SCRIPTS.values()))


def test_every_field_has_a_label_and_every_setting_a_field() -> None:
    labels = {*re.findall(r'<label[^>]*\bfor="([^"]+)"', HTML)}
    inside = {*re.findall(r'<label[^>]*><input id="([^"]+)"', HTML)}
    fields = {*re.findall(r'<(?:input|select|textarea) id="([^"]+)"', HTML)}
    assert fields == labels | inside
    described = SCRIPTS["form.js"].split("const LABELS = {")[1].split("};")[0]
    assert {*re.findall(r"^  (\w+):", described, re.MULTILINE)} == {*SETTINGS}
