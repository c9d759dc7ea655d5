"""What is refused, and in which words: hosts, other pages, lengths, names, broken pictures."""

from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from tests.web.conftest import Client
from ultrapixel_jax.config import SamplerName
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling import effects
from ultrapixel_jax.web import asks
from ultrapixel_jax.web.options import parse_arguments
from ultrapixel_jax.web.server import HEADERS, Server

PNG = {"Content-Type": "image/png"}


def test_the_page_and_its_parts(web: Client) -> None:
    status, headers, data = web.raw("GET", "/")
    assert status == 200 and b"<title>" in data and headers["Content-Type"] == "text/html; charset=utf-8"
    assert all(headers[name] == value for name, value in HEADERS.items())
    assert web.raw("GET", "/page/main.js", headers={"If-None-Match": headers["ETag"]})[0] == 200
    status, headers, data = web.raw("GET", "/page/main.js")
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"
    same = web.raw("GET", "/page/main.js", headers={"If-None-Match": headers["ETag"]})
    assert (same[0], same[2]) == (304, b"")
    status, headers, body = web.raw("HEAD", "/page/main.js")
    assert (status, headers["Content-Length"], body) == (200, str(len(data)), b"")
    for path in ("/page/none.js", "/page/..%2Froutes.py", "/page/../routes.py", "/nowhere", "/page"):
        status, answer = web.get(path)
        assert status == 404 and answer["error"]


def test_what_the_model_is_and_what_a_size_means(web: Client) -> None:
    status, model = web.get("/api/model")
    assert status == 200 and (model["name"], model["guided"]) == ("the fake", True)
    assert model["defaults"]["steps"] == 4
    assert model["choices"]["sampler"] == [*get_args(SamplerName)]
    assert "cfg_hr_b" not in model["defaults"] and {"sampler_hr", "reuse_b"} <= {*model["defaults"]}
    planned = web.get("/api/plan?height=2048&width=3072")[1]
    assert (planned["lr"], planned["doubt"]) == ([20, 30], "")
    for query, words in (
        ("height=100&width=512", "height 100 is outside 256 to 8192 pixels"),
        ("height=512", "'' is not a whole number"),
        ("height=512&width=4096", "aspect ratio of 8.00:1"),
    ):
        status, answer = web.get(f"/api/plan?{query}")
        assert status == 400 and words in answer["error"]


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:{port}", True), ("localhost:9", True), ("[::1]:1", True), ("192.168.1.7", True),
        ("pictures.example", True), ("PICTURES.example:80", True),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False),
        ("", False), ("a b", False), ("x:y", False), ("[::1", False),
    ],
)  # fmt: skip
def test_a_name_that_was_led_here_is_refused(web: Client, host: str, known: bool) -> None:
    status, answer = web.get("/api/model", Host=host.format(port=web.port))
    assert (status == 200) is known
    assert known or (status == 421 and "this machine is not known as" in answer["error"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 200),
        ({"Content-Type": "application/json; charset=utf-8", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Type": "text/plain"}, 415),  # what a form elsewhere may send unasked
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, 403),
        ({"Content-Type": "application/json", "Origin": "null"}, 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_this_page_may_ask(web: Client, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"prompt": "x", "height": 256, "width": 256})
    got, answered, data = web.raw("POST", "/api/jobs", body, headers)
    assert got == status and (status == 200) is ("id" in json.loads(data))
    assert "Access-Control-Allow-Origin" not in answered


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt": "x" * 10_000}, "the prompt has 10,000 characters; at most 4,000 are taken"),
        ({"prompt": "x", "negative_prompt": "💥" * 10_000}, "the negative prompt has 10,000 characters"),
        ({"prompt": " "}, "the prompt is empty"), ({}, "the key 'prompt' is missing"),
        ({"prompt": 3}, "prompt must be text"), ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"prompt": "x", "height": 100}, "100 is outside 256 to 8192"),
        ({"prompt": "x", "height": 512, "width": 8192}, "aspect ratio"),
        ({"prompt": "x", "steps": 0}, "0 is outside 1 to 1000"), ({"prompt": "x", "cfg": "many"}, "a number"),
        ({"prompt": "x", "cfg": float("nan")}, "not a finite number"),
        ({"prompt": "x", "stepz": 3}, "did you mean 'steps'"),
        ({"prompt": "x", "seed": -1}, "-1 is outside"), ({"prompt": "x", "seed": 2**32}, "outside"),
        ({"prompt": "x", "seed": 2**32 - 1, "num_images": 2}, "seed 4294967296"),
        ({"prompt": "x", "num_images": 17}, "17 pictures are too many"),
        ({"prompt": "x", "batch_size": 17}, "batch size 17"),
        ({"prompt": "x", "batch_size": True}, "batch size True"),
        ({"prompt": "x", "eta": 2}, "at most 1"),
        ({"prompt": "x", "name": "../x"}, "unknown key: 'name'"),
        ({"prompt": "x", "lora": "/etc/passwd"}, "unknown key: 'lora'"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(web: Client, asked: dict[str, object], words: str) -> None:
    status, answer = web.ask(**asked)
    assert status == 400 and words in answer["error"] and "\n" not in answer["error"]


def test_bodies_that_are_no_request(web: Client) -> None:
    for body, status in ((b"{", 400), (b"[" * 100_000, 400), (b"[]", 400), (b'"x"', 400), (b"\xff", 400),
                         (b" " * 300_000, 413)):  # fmt: skip
        assert web.raw("POST", "/api/jobs", body, {"Content-Type": "application/json"})[0] == status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", b" 400 "), (b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 400 "),
        (b"GET /%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 400 "), (b"GET / HTTP/1.1\r\n\r\n", b" 421 "),
        (b"PUT / HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 501 "),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 404 "),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 414 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 200 + b"\r\n", b" 431 "),
        (b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b" 411 "),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b" 411 "),
    ],
)  # fmt: skip
def test_requests_that_are_none(web: Client, sent: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = b""
        while block := connection.recv(65536):
            answer += block
            if status in answer.split(b"\r\n")[0] and b"error" in answer:
                break
    assert status in answer.split(b"\r\n")[0]
    assert web.get("/api/model")[0] == 200


@pytest.mark.parametrize(
    "name",
    ["..%2Fsecret.png", "%2e%2e%2fsecret.png", "..%5Csecret.png", "../secret.png", "%2Fetc%2Fpasswd",
     "link.png", "sub%2Finside.png", "sub.png", ".hidden.png", "words.txt", "a%00.png", "secret.png",
     "none.png", "C:x.png", ""],
)  # fmt: skip
def test_names_do_not_leave_the_directory(web: Client, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    for path in (tmp_path / "secret.png", out / ".hidden.png", out / "words.txt"):
        Image.new("RGB", (8, 8)).save(path, "PNG")
    (out / "sub.png").mkdir()
    (out / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(out / "sub" / "inside.png")
    (out / "link.png").symlink_to(tmp_path / "secret.png")
    assert web.get("/api/pictures")[1]["pictures"] == []
    for path in ("/pictures/{}", "/small/320/0/{}", "/tiles/0/{}.dzi", "/tiles/0/{}_files/0/0_0.png"):
        status, _, data = web.raw("GET", path.format(name))
        assert status == 404 and "error" in json.loads(data)
    status, _, data = web.raw("GET", f"/api/pictures/{name}")
    assert status == 404 and "error" in json.loads(data)


def test_a_picture_that_is_sent_shows_its_settings(web: Client, tmp_path: Path) -> None:
    job = web.draw(prompt="a red circle", seed=5, steps=3, cfg_hr=1.5, sampler_b="ddim")
    data = (tmp_path / "out" / job["pictures"][0]).read_bytes()

    def send(body: bytes, headers: dict[str, str] = PNG) -> tuple[int, dict[str, object]]:
        status, _, answer = web.raw("POST", "/api/settings?name=x.png", body, headers)
        return status, json.loads(answer)

    status, found = send(data)
    assert status == 200 and found == web.get(f"/api/pictures/{job['pictures'][0]}")[1]
    asked = found["asked"]
    assert {k: asked[k] for k in ("prompt", "seed", "height", "width", "steps", "cfg_hr", "sampler_b")} == {
        "prompt": "a red circle", "seed": 5, "height": 256, "width": 264, "steps": 3, "cfg_hr": 1.5,
        "sampler_b": "ddim",
    }  # fmt: skip
    # What was said fits into a new request as it is.
    again = web.draw(**asked)
    assert again["pictures"] == job["pictures"]

    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "PNG")
    for body, words in (
        (b"", "'x.png' is not a PNG picture"), (b"GIF89a", "'x.png' is not a PNG picture"),
        (data[:-9], "'x.png' is truncated or damaged"),
        (data[:5000] + b"\0\0\0\0" + data[5004:], "'x.png' is truncated or damaged"),
        (plain.getvalue(), "'x.png' has no ultrapixel metadata"),
    ):  # fmt: skip
        status, found = send(body)
        assert status == 400 and words in str(found["error"]) and "/tmp" not in str(found["error"])
    assert send(data, {"Content-Type": "image/jpeg"})[0] == 415


def test_two_hundred_megabytes_are_refused_unread(web: Client) -> None:
    """And in words that arrive, although the browser is still sending."""

    def blocks():
        for _ in range(200):
            yield bytes(10**6)

    headers = {**PNG, "Content-Length": str(200 * 10**6)}
    status, _, data = web.raw("POST", "/api/settings", blocks(), headers)
    assert (status, json.loads(data)) == (413, {"error": "200.0 MB are too many; at most 128.0 MB are taken"})
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as connection:
        connection.sendall(b"POST /api/settings HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
        connection.sendall(b"Content-Length: 200000000\r\nExpect: 100-continue\r\n\r\n")
        assert b" 413 " in connection.recv(65536).split(b"\r\n")[0]  # nothing was asked for
    assert web.get("/api/model")[0] == 200


def test_faults_of_the_program_leave_the_server_alive(
    web: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> object:
        raise KeyError("oh")

    with monkeypatch.context() as patch:
        patch.setattr(asks, "read", broken)
        status, answer = web.ask(prompt="x")
    assert status == 500 and answer["error"].startswith("a fault of the program's: KeyError")
    assert "Traceback" in capsys.readouterr().err
    assert web.ask(prompt="x")[0] == 200


def test_addresses_that_cannot_be_listened_at() -> None:
    with Server.at("127.0.0.1", 0) as first:
        assert first.address == f"http://127.0.0.1:{first.server_address[1]}/"
        with pytest.raises(UserError, match=r"cannot listen at 127\.0\.0\.1 port \d+: .* --host or --port"):
            Server.at("127.0.0.1", first.server_address[1])
    with pytest.raises(UserError, match="cannot listen at no such host"):
        Server.at("no such host", 0)


def test_the_command_line(tmp_path: Path) -> None:
    options = parse_arguments([])
    assert (options.host, options.port, options.name, str(options.output)) == (
        "127.0.0.1", 7860, "the demo", "output",
    )  # fmt: skip
    argv = ["--checkpoint", str(tmp_path), "--mesh", "data=2", "--host-name", "Gpu.example"]
    given = parse_arguments(argv)
    assert (given.name, given.mesh, given.host_names) == (tmp_path.name, {"data": 2}, ("gpu.example",))
    assert not options.given
    without = parse_arguments(["--tile", "64", "--decode-memory", "2", "--no-ema"]).given
    assert without == {"tile", "decode_memory", "no_ema"}
    lines = effects.without_effect(effects.Situation(without, preview=True, run=False))
    assert sorted(line.split(" without effect")[0] for line in lines) == ["decode_memory, tile", "no_ema"]
    for wrong, words in (
        (["--checkpoint", "nowhere"], "'nowhere' does not exist"),
        (["--port", "70000"], "outside 0 to 65535"),
        (["--host-name", "a:1"], "no name of a machine"), (["--no-cache", "--cache-dir", "x"], "give either"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            parse_arguments(wrong)


def test_small_pictures_and_the_list(web: Client, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    for i, size in enumerate([(640, 400), (64, 32), (3000, 1000)]):
        path = out / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
        os.utime(path, (i, i))
    (out / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    os.utime(out / "broken.png", (9, 9))
    listed = web.get("/api/pictures")[1]
    assert (listed["total"], [item["name"] for item in listed["pictures"]]) == (
        4, ["broken.png", "2.png", "1.png", "0.png"],
    )  # fmt: skip
    assert listed["pictures"][0]["fault"] == "'broken.png' is not a PNG picture"
    assert [item["name"] for item in web.get("/api/pictures?start=3")[1]["pictures"]] == ["0.png"]
    for item, shapes in zip(listed["pictures"][1:], [[(320, 107), (1280, 427)], [(64, 32)] * 2,
                                                     [(320, 200), (640, 400)]]):  # fmt: skip
        for side, shape in zip((320, 1280), shapes):
            status, headers, data = web.raw("GET", f"/small/{side}/{item['version']}/{item['name']}")
            assert status == 200 and "immutable" in headers["Cache-Control"]
            assert Image.open(io.BytesIO(data)).size == shape
    assert web.get(f"/small/500/{item['version']}/0.png")[0] == 400
    assert web.get(f"/small/320/{listed['pictures'][0]['version']}/broken.png")[0] == 400
    assert web.get("/small/320/0/0.png")[1]["error"].startswith("'0.png' is another picture now")
    assert web.raw("GET", "/pictures/1.png")[2] == (out / "1.png").read_bytes()
