"""The benchmark of TPUs that are not there, as far as it goes without their compiler."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import absent_tpu, programs
from configs.tiny import config as tiny
from ultrapixel_jax.errors import UserError
from ultrapixel_jax.sharding import make_mesh
from ultrapixel_jax.sizes import Bucket


@pytest.mark.parametrize(
    "name, shape",
    [
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-256", "v5e:16x16"),
        ("v6e-8", "v6e:2x4"),
        ("v5p-8", "v5p:2x2x1"),  # two cores for each chip
        ("v5p-128", "v5p:4x4x4"),
        ("v4:2x2x2", "v4:2x2x2"),
    ],
)
def test_shapes_of_slices(name: str, shape: str) -> None:
    assert absent_tpu.shape_of(name) == shape


@pytest.mark.parametrize("name", ["v5p-4", "v6e-12", "v9-16", "v5e", "v5e-", "v5e-16x", "v5e-99999999999"])
def test_slices_that_do_not_exist(name: str) -> None:
    with pytest.raises(UserError, match="v5e-16, v5p-8 or v6e-16"):
        absent_tpu.shape_of(name)


def test_chips_of_every_named_slice() -> None:
    for shapes in (absent_tpu.FLAT, absent_tpu.CUBES):
        for count, shape in shapes.items():
            assert eval(shape.replace("x", "*")) == count


@pytest.mark.parametrize(
    "message, line",
    [  # both as libtpu 0.0.42 and its forerunners write it
        (
            "the total memory required for HLO temporaries (40.00G) exceeds available HBM (15.75G).",
            "needs 40.00 GiB per chip, and there are 15.75",
        ),
        ("Used 17.50G of 15.75G hbm. Exceeded by 1.75G.", "needs 17.50 GiB per chip, and there are 15.75"),
        ("INTERNAL: no\nsuch thing", "does not compile: INTERNAL: no such thing"),
    ],
)
def test_what_the_compiler_refuses_is_one_line(message: str, line: str) -> None:
    assert absent_tpu.refusal(message) == line


@pytest.mark.parametrize(
    "options",
    [
        ["--mesh", "data=4"],
        ["--mesh", "data=16", "--slice", "v6e-12"],
        ["--mesh", "data=16", "--size", "1x1"],
        ["--mesh", "data=16", "--program", "c"],
        [],
    ],
)
def test_bad_input_is_one_line(options: list[str], capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(absent_tpu, "devices_of", lambda name: [absent_tpu.shape_of(name)] * 16)
    assert absent_tpu.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_figures_of_a_program_by_hand() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4})
    rows, whole = (NamedSharding(mesh, PartitionSpec(*of)) for of in ((("data", "fsdp"),), ()))
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=whole)

    row = absent_tpu.measure(lambda: jax.jit(lambda x, w: (x + w[None]).sum(0)).lower(x, w), mesh, None)
    assert row["arguments"] * 2**30 == 4096 + 4096
    assert row["collectives"].startswith("all-reduce 1: ")
    (only,) = row["largest"]
    assert (only["group"], only["received"]) == (8, 2 * 4096 * 7 // 8)
    assert row["peak"] >= row["arguments"] + 4096 / 2**30


def test_the_samplers_programs_lower_and_their_weights_are_divided() -> None:
    mesh = make_mesh({"data": 2, "fsdp": 4})
    of = programs.sampling(tiny, Bucket.of(512, 512), 8, mesh, tile=8)
    assert of.keys() == programs.STAGES.keys()
    with jax.set_mesh(mesh):
        assert of["high"]().as_text().startswith("module")
    weights = programs.sampler_weights(tiny, mesh)
    kernel = weights["stage_c"]["params"]["down_0"]["layer_0"]["expand"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.spec == PartitionSpec("fsdp", "tensor")
    assert {x.dtype.name for x in jax.tree.leaves(weights["stage_a"]["params"])} == {"float32"}
