"""Pictures to draw from and LoRAs, as a browser names them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.web.conftest import Client, Stepping
from ultrapixel_jax.web import sent


def picture(kind: str = "PNG", size: tuple[int, int] = (264, 256), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def send(web: Client, data: bytes, kind: str = "png") -> tuple[int, Any]:
    status, _, answer = web.raw("POST", "/api/sent", data, {"Content-Type": f"image/{kind}"})
    return status, json.loads(answer)


def test_pictures_are_kept_by_their_content(web: Client, tmp_path: Path) -> None:
    for kind in ("png", "jpeg", "webp"):
        status, kept = send(web, picture(kind.upper()), kind)
        assert status == 200 and (kept["width"], kept["height"]) == (264, 256)
        assert send(web, picture(kind.upper()), kind)[1] == kept
        status, headers, data = web.raw("GET", f"/{kept['source']}")
        assert (status, headers["Content-Type"], data) == (200, f"image/{kind}", picture(kind.upper()))
    assert len(list((tmp_path / "out" / "sent").iterdir())) == 3
    assert web.get("/api/pictures")[1]["total"] == 0


def test_what_cannot_be_drawn_from_is_refused(
    web: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, kind, status, words in (
        (b"nothing", "png", 400, "is not a PNG or JPEG or WEBP picture"),
        (picture("GIF"), "png", 400, "is not a PNG or JPEG or WEBP picture"),
        (picture("GIF"), "gif", 415, "image/png or image/jpeg or image/webp"),
        (picture()[:-40], "png", 400, "picture that was sent cannot be used"),
        (picture(size=(8, 8)), "png", 400, "8x8 pixels"),
    ):
        got, answer = send(web, data, kind)
        assert got == status and words in answer["error"] and str(tmp_path) not in answer["error"]
    monkeypatch.setattr("ultrapixel_jax.web.reading.MAX_PIXELS", 100)
    assert "264x256 pixels" in send(web, picture())[1]["error"]
    monkeypatch.undo()
    assert not (tmp_path / "out" / "sent").exists()
    monkeypatch.setattr(sent, "MAX_BYTES", 2 * len(picture()) - 1)
    assert send(web, picture())[0] == 200
    assert "remove some from sent/" in send(web, picture(colour="blue"))[1]["error"]
    for name in ("..%2F..%2Fx.png", "0123456789abcdef.png", "%2e%2e", "x.png"):
        assert web.raw("GET", f"/sent/{name}")[0] == 404


def test_what_steers_a_picture_comes_back_from_it(web: Client, cascade: Stepping, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "cat.safetensors").write_bytes(b"cat")
    (tmp_path / "loras" / "other.safetensors").write_bytes(b"no LoRA")
    (first,) = web.draw(prompt="a red circle", seed=1)["pictures"]
    (kept, other) = (send(web, picture(colour=colour))[1]["source"] for colour in ("red", "blue"))
    guides = [
        {"role": "image", "source": f"pictures/{first}", "amount": 0.4},
        {"role": "canny", "source": kept, "amount": 0.5},
        {"role": "inpainting", "source": kept, "mask": other, "amount": 0.7},
        {"role": "image_prompt", "source": other, "amount": 2.0},
    ]
    loras = [{"name": "cat.safetensors", "scale": 0.5}]
    assert web.get("/api/model")[1]["loras"] == ["cat.safetensors", "other.safetensors"]
    assert web.get("/api/loras/cat.safetensors") == (200, {"words": ["[cat]", None]})
    for name, words in (("other.safetensors", "no LoRA"), ("..%2Fcat.safetensors", "there is no LoRA")):
        status, answer = web.get(f"/api/loras/{name}")
        assert status in (400, 404) and words in answer["error"] and str(tmp_path) not in answer["error"]
    token = ["[dog]=^dog</w>", "[x]"]
    job = web.draw(prompt="a blue circle", seed=2, guides=guides, loras=loras, token=token)
    assert job["state"] == "done", job["error"]
    steered = cascade.last[0].conditions
    assert (steered.start.strength, steered.start.strength_hr) == (0.4, 0.4)
    assert Path(steered.start.image.path).samefile(tmp_path / "out" / first)
    assert [(c.kind, c.strength, c.mask is not None) for c in steered.controls] == [
        ("canny", 0.5, False), ("inpainting", 0.7, True),
    ]  # fmt: skip
    assert (steered.image_prompts[0].weight, steered.loras[0].scale) == (2.0, 0.5)
    assert [(one.name, one.pattern) for one in steered.tokens] == [("[dog]", "^dog</w>"), ("[x]", "")]
    status, found = web.get(f"/api/pictures/{job['pictures'][0]}")
    plain = [{key: one[key] for key in ("role", "source", "mask", "amount") if key in one} for one in
             found["asked"]["guides"]]  # fmt: skip
    assert status == 200 and sorted(plain, key=str) == sorted(guides, key=str)
    assert (found["asked"]["loras"], found["asked"]["token"], found["missing"]) == (loras, token, [])
    assert {(one["height"], one["width"]) for one in found["asked"]["guides"]} == {(256, 264)}
    again = {**found["asked"], "guides": plain}
    assert web.draw(**again)["pictures"] == job["pictures"]
    for one in (tmp_path / "out" / "sent").iterdir():
        one.unlink()
    found = web.get(f"/api/pictures/{job['pictures'][0]}")[1]
    assert [one["role"] for one in found["asked"]["guides"]] == ["image"] and len(found["missing"]) == 4


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"guides": {}}, "guides must be a list of objects"),
        ({"guides": [1]}, "guides must be a list of objects"),
        ({"guides": [{"role": "cany", "source": "x"}]}, "did you mean 'canny'"),
        ({"guides": [{"role": "canny"}]}, "None is no picture of this page"),
        ({"guides": [{"role": "canny", "source": "/etc/passwd"}]}, "'passwd' is no picture of"),
        ({"guides": [{"role": "canny", "source": "pictures/../../x.png"}]}, "no picture '../../x.png'"),
        ({"guides": [{"role": "canny", "source": "sent/../x.png"}]}, "there is no picture '../x.png'"),
        ({"guides": [{"role": "inpaint", "source": "pictures/0.png"}]}, "None is no picture of this page"),
        ({"guides": [{"role": "image", "source": "pictures/0.png"}] * 2}, "only one picture can be"),
        ({"guides": [{"role": "canny", "source": "pictures/0.png"}] * 5}, "5 guides are too many"),
        ({"guides": [{"role": "canny", "source": "pictures/0.png", "amount": "x"}]}, "'x' is not a number"),
        ({"guides": [{"role": "image", "source": "pictures/0.png", "amount": 2}]}, "strength 2"),
        ({"guides": [{"role": "image", "source": "pictures/0.png", "path": "/"}]}, "unknown key: 'path'"),
        ({"guides": [{"role": "image", "source": "pictures/0.png"}], "width": 512}, "another aspect ratio"),
        ({"loras": [{"name": "../x.safetensors"}]}, "there is no LoRA '../x.safetensors'"),
        ({"loras": [{"name": "/etc/passwd"}]}, "there is no LoRA 'passwd'"),
        ({"token": ["=^cat</w>"]}, "is not NAME=PATTERN"),
        ({"token": [["[cat]"]]}, "token must be NAME=PATTERN"),
        ({"token": ["[cat]"] * 17}, "17 new words are too many"),
    ],
)  # fmt: skip
def test_what_cannot_steer_is_said(web: Client, tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    (tmp_path / "out" / "0.png").write_bytes(picture())
    status, answer = web.ask(prompt="x", **asked)
    assert status in (400, 404) and words in answer["error"] and str(tmp_path) not in answer["error"]
