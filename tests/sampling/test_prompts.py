"""Prompt files, as people have them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import condition_keys
from ultrapixel_jax.sampling.prompts import KEYS, read_prompts
from ultrapixel_jax.sampling.requests import Entry


def test_lines_and_json_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(
        "\ufeffa cat\r\n\r\n  # not a comment  \n"
        '{"prompt": "ein Bär", "negative_prompt": "", "seed": 7, "size": "512x768", "name": "bear.png"}\n'
        '{"prompt": "", "height": 600, "width": 512}\n'
        "one\u2028line\n[1, 2]".encode()
    )
    assert read_prompts(file) == [
        Entry("a cat"),
        Entry("# not a comment"),
        Entry("ein Bär", "", 7, 512, 768, "bear"),
        Entry("", height=600, width=512),
        Entry("one\u2028line"),
        Entry("[1, 2]"),
    ]


BAD_LINES = [
    (b"{", "not valid JSON"),
    (b'{"prompt": "a"', "not valid JSON"),
    (b'{"prompt": "a"} x', "not valid JSON"),
    (b'{"promt": "a"}', "unknown key: 'promt'; did you mean 'prompt'"),
    (b'{"prompt": "a", "Sise": "512x512"}', "did you mean 'size'"),
    (b'{"prompt": "a", "guidance_scale": 3}', "did you mean 'cfg'"),
    (b'{"prompt": "a", "num inference steps": 3}', "did you mean 'steps'"),
    (b'{"prompt": "a", "lighting": 3}', "known are prompt, negative_prompt"),
    (b'{"prompt": "a", "PROMPT": "b"}', "given twice"),
    (b'{"prompt": "a", "steps": 0}', "steps 0 is outside 1 to 1000"),
    (b'{"prompt": "a", "steps": 1e3}\n{"prompt": "a", "steps_b": 1.5}', "steps_b must be a whole number"),
    (b'{"prompt": "a", "cfg": NaN}', "cfg 'nan' is not a finite number"),
    (b'{"prompt": "a", "cfg": "4"}', "cfg must be a number, not '4'"),
    (b'{"prompt": "a", "eta_b": 2}', "eta_b '2' must be at least 0 and at most 1"),
    (
        b'{"prompt": "a", "sampler": "euler"}',
        "sampler 'euler' is not known; use ddpm, ddim, dpmpp_2m, dpmpp",
    ),
    (b'{"prompt": "a", "num_images": 0}', "num_images 0 is outside"),
    (b'{"seed": 1}', "'prompt' is missing"),
    (b'{"prompt": "a", "prompt": "b"}', "given twice"),
    (b'{"prompt": 1}', "prompt must be text, not 1"),
    (b'{"prompt": null}', "prompt must be text, not None"),
    (b'{"prompt": "a", "seed": "1"}', "seed must be a whole number, not '1'"),
    (b'{"prompt": "a", "seed": true}', "seed must be a whole number, not True"),
    (b'{"prompt": "a", "seed": 1.5}', "seed must be a whole number"),
    (b'{"prompt": "a", "seed": -1}', "seed -1 is outside"),
    (b'{"prompt": "a", "seed": 4294967296}', "seed 4294967296 is outside"),
    (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    (b'{"prompt": ' + b"[" * 100_000, "not valid JSON"),
    (b'{"prompt": "a", "size": "512"}', "HEIGHTxWIDTH"),
    (b'{"prompt": "a", "size": "100x512"}', "height 100 is outside"),
    (b'{"prompt": "a", "size": "512x512", "height": 512}', "either size or height and width"),
    (b'{"prompt": "a", "height": 512}', "height and width together"),
    (b'{"prompt": "a", "height": 512, "width": 8000}', "aspect ratio"),
    (b'{"prompt": "a", "name": "../x"}', "would leave the output directory"),
    (b'{"prompt": "\\ud800"}', "not valid Unicode"),
    (b'{"prompt": "a\\u0000"}', "NUL"),
    (b'{"prompt": "a", "negative_prompt": "\\udfff"}', "not valid Unicode"),
    (b"caf\xe9", "not UTF-8"),
    (b"a\0b", "NUL"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_malformed_line_is_named_with_its_number(tmp_path, line, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a cat\n\n" + line + b"\na dog\n")
    with pytest.raises(UserError) as caught:
        read_prompts(file)
    assert str(caught.value).startswith((f"{file}:3: ", f"{file}:4: "))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n\t\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match="is empty"):
        read_prompts(tmp_path / "prompts.txt")


def test_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)


def test_the_list_of_a_file_survives_json(tmp_path):
    lines = [{"prompt": f"p{i}", "seed": i} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [e.seed for e in read_prompts(tmp_path / "p.jsonl")] == [0, 1, 2]


# -- other kinds of files

TWO = [
    Entry("a cat, asleep", "blurry", 7, 512, 768, "cat", 2, {"steps": 30, "cfg": 3.5, "sampler_b": "ddim"}),
    Entry("ein Bär"),
]
OBJECTS: list[dict[str, Any]] = [
    {
        "Prompt": "a cat, asleep", "NEGATIVE_PROMPT": "blurry", "Seed": 7, "Size": "512x768",
        "name": "cat.png", "num-images": 2, "Steps": 30, "CFG": 3.5, "Sampler B": "ddim", "eta": None,
    },
    {"text": "ein Bär"},
]  # fmt: skip
TABLE = (
    "Prompt,Negative Prompt,SEED,Height,width,name,num_images,steps,cfg,sampler_b\r\n"
    '"a cat, asleep",blurry,7,512,768,cat,2,30,3.5,ddim\r\n'
    "\r\n"
    "ein Bär,,,,,,,\r\n"
)
FILES = [
    ("p.json", json.dumps(OBJECTS, indent=2)),
    ("p.txt", json.dumps(OBJECTS)),  # by what it begins with
    ("p.jsonl", "\n".join(map(json.dumps, OBJECTS))),
    ("p.json", "\n".join(map(json.dumps, OBJECTS))),
    ("p.csv", TABLE),
    (
        "p.csv",
        TABLE.replace(",", ";").replace("cat; ", "cat, "),
    ),  # as spreadsheets write it in much of Europe
    ("p.tsv", TABLE.replace(",", "\t").replace("cat\t ", "cat, ").replace('"', "")),
    ("prompts", TABLE),  # by its header
]


@pytest.mark.parametrize(("name", "text"), FILES, ids=[name for name, _ in FILES])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_kind_says_the_same(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_prompts(tmp_path / name) == TWO


def test_every_key_is_read_from_text_and_from_numbers(tmp_path: Path) -> None:
    values = {
        "prompt": "a", "negative_prompt": "b", "seed": 3, "height": 512, "width": 640, "name": "n",
        "num_images": 2, "steps": 5, "cfg": 1.5, "cfg_hr": 1, "shift": 2.0, "sampler": "ddim", "eta": 0.5,
        "schedule": "edm", "cfg_rescale": 0.0, "steps_b": 4, "cfg_b": 1.25, "shift_b": 0.5,
        "sampler_b": "ddpm", "eta_b": 1, "schedule_b": "sqrt", "cfg_rescale_b": 0.25, "steps_hr": 7,
        "sampler_hr": "dpmpp_2m", "cfg_from": 0.25, "cfg_until": 0.75, "cfg_from_hr": 0.5, "cfg_until_hr": 1,
        "reuse": 2, "reuse_hr": 3, "cfg_from_b": 0.0, "cfg_until_b": 0.5, "reuse_b": 4,
    }  # fmt: skip
    assert {*values} == {*KEYS} - {"size", *condition_keys.KEYS}
    (tmp_path / "a.json").write_text(json.dumps([values]))
    (tmp_path / "a.csv").write_text("\n".join(",".join(map(str, row)) for row in (values, values.values())))
    (one,), (other,) = read_prompts(tmp_path / "a.json"), read_prompts(tmp_path / "a.csv")
    assert one == other
    assert {**one.settings} == {k: v for k, v in values.items() if k in one.settings}
    assert len(one.settings) == 26


def test_parti_prompts(tmp_path: Path) -> None:
    (tmp_path / "PartiPrompts.tsv").write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        'a sign that says "no"\tAbstract\tBasic\tBasic-Level \n'
        'bond\tAbstract\tBasic\t"Biology, ""nature"""\n'
    )
    notes: list[str] = []
    found = read_prompts(tmp_path / "PartiPrompts.tsv", note=notes.append)
    assert found == [Entry('a sign that says "no"'), Entry("bond")]
    assert [note.split(": ", 1)[1] for note in notes] == [
        "columns without a meaning here: Category, Challenge, Note"
    ]


def test_other_lists_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "DrawBench.csv").write_text("Prompts,Category\nA red coloured car.,Colors\n")
    (tmp_path / "texts.json").write_text('["a", "# b"]')
    (tmp_path / "object.json").write_text('{\n "prompt": "a"\n}')
    (tmp_path / "mac.txt").write_bytes(b"a\rb\r")
    (tmp_path / "list.txt").write_text("[cinematic] a cat\nprompt, a dog\n")  # plain prompts after all
    (tmp_path / "quotes.csv").write_text('prompt\n"two\nlines, one prompt"\n')

    def texts(name: str) -> list[str]:
        return [entry.prompt for entry in read_prompts(tmp_path / name)]

    assert texts("DrawBench.csv") == ["A red coloured car."]
    assert texts("texts.json") == ["a", "# b"]
    assert texts("object.json") == ["a"]
    assert texts("mac.txt") == ["a", "b"]
    assert texts("list.txt") == ["[cinematic] a cat", "prompt, a dog"]
    assert texts("quotes.csv") == ["two\nlines, one prompt"]


def test_comments_on_request(tmp_path: Path) -> None:
    file, notes = tmp_path / "p.txt", []
    file.write_text('# mine\na cat\n  # {"prompt": "no"}\n{"prompt": "#1"}\n')
    assert len(read_prompts(file, note=notes.append)) == 4
    assert notes == ["3 prompts begin with #; --comments skips such lines"]
    assert read_prompts(file, comments=True) == [Entry("a cat"), Entry("#1")]
    (tmp_path / "p.csv").write_text("# from a spreadsheet\nprompt,seed\n#,1\na,2\n")
    assert read_prompts(tmp_path / "p.csv", comments=True) == [Entry("a", seed=2)]
    file.write_text("# a\n# b\n")
    with pytest.raises(UserError, match="is empty"):
        read_prompts(file, comments=True)


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a cat\nein Bär\n".encode())))
    assert [entry.prompt for entry in read_prompts("-")] == ["a cat", "ein Bär"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n{")))
    with pytest.raises(UserError, match=r"^stdin:2: not valid JSON"):
        read_prompts(Path("-"))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="stdin, which is closed"):
        read_prompts("-")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[\n{},\n]", ": not valid JSON: .* at line [23] column"),
        ("a.txt", b'[{"prompt": "a"},]', ": not valid JSON"),
        ("a.json", b'["a", {"sead": 1}]', ": item 2: unknown key: 'sead'; did you mean 'seed'"),
        ("a.json", b"[1]", "not an array of objects or of prompts"),
        ("a.json", b"7", "not an array"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"a cat\na dog\n", "names no column 'prompt'; it has 'a cat'"),
        ("a.csv", b"prompt,sead\na,1\n", "unknown column: 'sead'; did you mean 'seed'"),
        ("a.csv", b"prompt,guidance_scale\na,1\n", "did you mean 'cfg'"),
        ("a.csv", b"prompt,caption\na,b\n", "'prompt' is there twice"),
        ("a.csv", b"prompt,seed\na,1\nb,x\n", ":3: seed 'x' is not a whole number"),
        ("a.csv", b"prompt,seed\na cat, asleep,1\n", ":2: 3 cells under 2 columns; put a cell"),
        ("a.csv", b"prompt,seed\n,1\n", ":2: the key 'prompt' is missing"),
        ("a.csv", b'prompt\n"a\n', ":[23]: not a row of the table"),
        ("a.csv", b"prompt\n" + b"a" * 200_000, ":2: not a row of the table: field larger"),
        ("a.csv", b"prompt,size\na,100x512\n", ":2: height 100 is outside"),
        ("a.csv", b"prompt,seed\n", "is empty"),
        ("a.txt", "a cat".encode("utf-16-le"), "looks like UTF-16"),
        ("a.txt", b"\xff\xfea", "damaged UTF-16-LE text; save it as UTF-8"),
        ("a.csv", b"prompt\ncaf\xe9\n", ":2: not UTF-8 text"),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
