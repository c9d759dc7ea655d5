from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrapixel_jax.config import CascadeConfig, DiffusionConfig
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sampling.requests import (
    MAX_SEED,
    Entry,
    Request,
    check_name,
    make_requests,
    plan,
    read_prompts,
    share,
    slug,
)
from ultrapixel_jax.sizes import LR_SIDE, Bucket

SETTINGS = {"stage_c": CascadeConfig().sampling_c, "stage_b": CascadeConfig().sampling_b}
SIZES = [(1024, 1024), (1023, 1024), (1001, 1999), (512, 512), (2048, 3072)]


@st.composite
def lists(draw):
    picks = draw(
        st.lists(st.tuples(st.sampled_from(SIZES), st.integers(1, 2), st.integers(1, 2)), max_size=40)
    )
    return [
        Request("a", "", 0, *size, DiffusionConfig(steps=steps), DiffusionConfig(steps=steps_b), index=i)
        for i, (size, steps, steps_b) in enumerate(picks)
    ]


# -- the prompts file


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
    (b'{"prompt": "a", "Size": "512x512"}', "did you mean 'size'"),
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
    assert str(caught.value).startswith(f"{file}:3: ")
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


# -- names


@pytest.mark.parametrize("name", ["cat", "v1.5", "Katze im Schnee", "猫", "a" * 200, "console", "nul_1"])
def test_good_names(name):
    assert check_name(name) == name
    assert check_name(name + ".PNG") == name


@pytest.mark.parametrize(
    "name",
    ["", " ", ".png", ".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "C:a", "a\0b", "a\nb", ".hidden", "a.",
     " a", "nul", "COM1.x", "Aux.png", "a" * 201, "猫" * 70, "a?", "a\udc80"],
)  # fmt: skip
def test_bad_names(name):
    with pytest.raises(UserError, match=r"name|prompt"):
        check_name(name)


@given(st.text(max_size=300))
@settings(deadline=None)
def test_a_file_name_stays_in_its_directory(prompt):
    assert check_name(f"00000-{slug(prompt)}-0") == f"00000-{slug(prompt)}-0"


# -- requests


def test_seeds_names_and_defaults():
    entries = [Entry("a"), Entry("b", "bad", 5, 512, 600, "own")]
    made = make_requests(
        entries, height=1024, width=1024, seed=3, negative_prompt="neg", num_images=2, **SETTINGS
    )
    assert [r.seed for r in made] == [3, 4, 5, 6]
    assert [r.index for r in made] == [0, 1, 2, 3]
    assert [r.file_name for r in made] == ["00000-a-3", "00001-a-4", "own-5", "own-6"]
    assert [r.negative_prompt for r in made] == ["neg", "neg", "bad", "bad"]
    assert [(r.height, r.width) for r in made] == [(1024, 1024)] * 2 + [(512, 600)] * 2
    (one,) = make_requests(entries[1:], height=1024, width=1024, **SETTINGS)
    assert one.file_name == "own"


@pytest.mark.parametrize("bad", [{"seed": MAX_SEED}, {"num_images": 0}, {"height": 100}, {"seed": -1}])
def test_ranges(bad):
    with pytest.raises(UserError):
        make_requests([Entry("a")], **{"height": 512, "width": 512, "num_images": 2, **SETTINGS, **bad})


# -- batches and shares


@given(lists(), st.integers(1, 5))
@settings(deadline=None)
def test_a_plan_has_every_request_once_and_never_mixes(requests, batch_size):
    batches = plan(requests, batch_size, LR_SIDE)
    assert sorted(r.index for batch in batches for r in batch.requests) == list(range(len(requests)))
    keys = []
    for batch in batches:
        assert {Bucket.of(r.height, r.width, LR_SIDE) for r in batch.requests} == {batch.bucket}
        assert len({(r.stage_c, r.stage_b) for r in batch.requests}) == 1
        assert 0 <= batch.padding < batch_size
        assert len(batch.requests) + batch.padding == batch_size
        key = (batch.bucket, batch.requests[0].stage_c, batch.requests[0].stage_b)
        if keys and keys[-1] != key:
            assert key not in keys  # a group runs in one go
        keys.append(key)
    # Only the last batch of a group is padded.
    assert all(batch.padding == 0 or keys[i + 1 : i + 2] != [keys[i]] for i, batch in enumerate(batches))


@given(lists(), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)
def test_shares_are_whole_balanced_and_keep_the_batches(requests, count, batch_size):
    shares = [share(requests, i, count, batch_size, LR_SIDE) for i in range(count)]
    assert sorted(r.index for part in shares for r in part) == list(range(len(requests)))
    whole = plan(requests, batch_size, LR_SIDE)
    parts = [plan(part, batch_size, LR_SIDE) for part in shares]
    as_set = lambda batches: sorted(tuple(r.index for r in batch.requests) for batch in batches)  # noqa: E731
    assert as_set(batch for part in parts for batch in part) == as_set(whole)

    def cost(batches):
        return sum(batch.bucket.pixels[0] * batch.bucket.pixels[1] for batch in batches)

    largest = max((cost([batch]) for batch in whole), default=0)
    assert all(cost(part) <= cost(whole) / count + largest for part in parts)
    # Each border between processes splits one group at most.
    compiled = sum(len({batch.bucket for batch in part}) for part in parts)
    assert (
        compiled <= len({(b.bucket, b.requests[0].stage_c, b.requests[0].stage_b) for b in whole}) + count - 1
    )


def test_the_list_of_a_file_survives_json(tmp_path):
    lines = [{"prompt": f"p{i}", "seed": i} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [e.seed for e in read_prompts(tmp_path / "p.jsonl")] == [0, 1, 2]
