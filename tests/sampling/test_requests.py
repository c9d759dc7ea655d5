from __future__ import annotations

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
