"""Kernels of a GPU's program: bytes and operations of a stored text, and of lines, against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import ahead
from benchmarks.gpus import GPUS
from benchmarks.hlo import Instruction
from benchmarks.kernels import Kernel, kernels, operands

TEXT = (Path(__file__).parent / "golden" / "kernels.hlo").read_text()
"""x (1024, 512), w (512, 2048), v (2048, 512) and ws (7, 512, 512) in bfloat16, big (4096, 512) in float32;
`gelu(x·w)·v`, through seven `tanh(·ws[i])` in a loop; eight rows of `big` doubled in their place. Compiled
for an H100 by jax 0.10.2."""
MIB = 1 << 20
CALLS = """\
HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[96,64], w: bf16[64,32], i: bf16[2,10,12,8], k: bf16[3,3,4,16]) -> bf16[96,32] {
  %x = bf16[96,64]{1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  %i = bf16[2,10,12,8]{3,2,1,0} parameter(2)
  %k = bf16[3,3,4,16]{3,2,1,0} parameter(3)
  %convolution.1 = bf16[2,8,10,16]{3,2,1,0} convolution(%i, %k), window={size=3x3}, \
dim_labels=b01f_01io->b01f, feature_group_count=2
  %q = bf16[2,100,4,16]{3,2,1,0} bitcast(%i)
  %attention.1 = bf16[2,100,4,16]{3,2,1,0} custom-call(%q, %q, %q), \
custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/flash_attention"}
  %called = (bf16[96,32]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %out = bf16[96,32]{1,0} get-tuple-element(%called), index=0
}
"""


def by_name(text: str) -> dict[str, Kernel]:
    found = kernels(text)
    assert len({k.name for k in found}) == len(found)
    return {k.name: k for k in found}


def test_bytes_and_products_of_a_stored_text() -> None:
    found = by_name(TEXT)
    expand, contract = found["gemm_fusion_dot_general.4"], found["gemm_fusion_dot"]
    assert (expand.moved, expand.operations) == (MIB + 2 * MIB + 8 * MIB, 2 * 1024 * 512 * 2048)
    assert contract.operations == expand.operations
    looped = found["gemm_fusion_dot_general.0"]
    assert (looped.kind, looped.times, looped.operations) == ("product", 7, 2 * 1024 * 512 * 512)
    assert looped.moved == MIB + MIB // 2 + MIB
    taken = found["loop_dynamic_slice_fusion"]  # of seven matrices one at a time, and their number
    assert (taken.times, taken.moved) == (7, 2 * MIB // 2 + 4)
    rows = 8 * 512 * 4
    assert found["loop_dynamic_update_slice_fusion"].moved == 2 * rows + 4  # and not all of `big`
    assert found["copy.9"].moved == 2 * 4096 * 512 * 4
    total = sum(k.times * k.operations for k in found.values())
    assert total == 2 * 2 * 1024 * 512 * 2048 + 7 * 2 * 1024 * 512 * 512


def test_calls_of_libraries() -> None:
    found = by_name(CALLS)
    product = found["called"]
    assert product.operations == 2 * 96 * 64 * 32
    assert product.moved == 2 * (96 * 64 + 64 * 32 + 96 * 32)  # its scratch memory is no traffic
    convolution = found["convolution.1"]
    assert convolution.operations == 2 * (2 * 8 * 10 * 16) * (3 * 3 * 4)
    attention = found["attention.1"]
    assert attention.operations == 2 * 2 * (2 * 100 * 100 * 4 * 16)
    assert attention.moved == 2 * 2 * (2 * 100 * 4 * 16)


def test_the_larger_of_two_times_bounds_a_kernel() -> None:
    kernel = Kernel("k", "product", times=3, moved=10, operations=100, where="")
    assert kernel.bound(bandwidth=5, rate=200) == 3 * 2.0
    assert kernel.bound(bandwidth=100, rate=20) == 3 * 5.0


def test_operands_with_and_without_types() -> None:
    for rest in (
        "%a.1, /*index=5*/%b), calls=%c", "f32[2]{0} %a.1, (s32[], f32[2,3]{1,0}) %b), dimensions={0}",
        "a.1, b), index=0",
    ):  # fmt: skip
        assert operands(Instruction("x", "fusion", "f32[2]", rest)) == ["a.1", "b"]


def test_a_program_beside_another_commits() -> None:
    memory = SimpleNamespace(
        argument_size_in_bytes=3e9, output_size_in_bytes=2e9, alias_size_in_bytes=1e9, temp_size_in_bytes=5e9
    )
    program: Any = SimpleNamespace(as_text=lambda: TEXT, memory_analysis=lambda: memory)
    row = ahead.figures(program, "h100", "bfloat16")
    gpu = GPUS["h100"]
    assert row["peak"] == 9.0
    assert row["bound"] == pytest.approx(sum(k["bound"] for k in row["kernels"]))
    assert row["products"] == pytest.approx(1e3 * 1e9 * row["operations"] / gpu.rate("bfloat16"))
    assert 0 < row["share"] < 1
    keys = {"program": "block.c", "size": "1x1", "batch": 1, "dtype": "bfloat16", "gpu": "h100"}
    now, other = {**row, **keys}, {**row, **keys, "batch": 2}
    ahead.beside([now, other], json.loads(json.dumps([{**keys, "moved": 7.0, "bound": 8.0}])))
    assert (now["moved_before"], now["bound_before"]) == (7.0, 8.0) and "moved_before" not in other


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["block.x"], "use block.c, block.t"),
        (["block.c", "--gpu", "h10"], "did you mean 'h100'"),
        (["block.c", "--against", str(tmp_path / "none.json")], "--against"),
    ):
        assert ahead.main(options) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="no HLO text"):
        kernels("nothing")


@pytest.mark.parametrize(
    ("target", "weights"), [("__gpu$xla.gpu.triton", "[1,64,256]{2,1,0}"), ("mosaic_gpu_v2", "[64,256]{1,0}")]
)
def test_the_operations_of_a_product_with_an_epilogue(target: str, weights: str) -> None:
    """On either of Pallas' backends; Mosaic GPU's call carries a program, in which anything may stand."""
    text = f"""\
HloModule jit_f, is_scheduled=true

ENTRY %main (x: bf16[2,143,64], w: bf16{weights[:-5]}, b: f32[256]) -> (bf16[2,143,256], f32[2,2,256]) {{
  %x = bf16[2,143,64]{{2,1,0}} parameter(0)
  %w = bf16{weights} parameter(1)
  %b = f32[256]{{0}} parameter(2)
  ROOT %made = (bf16[2,143,256]{{2,1,0}}, f32[2,2,256]{{2,1,0}}) custom-call(%x, %w, %b), \
custom_call_target="{target}", metadata={{op_name="jit(f)/product_with_epilogue/call"}}, \
backend_config={{module = "ML\\EFR(%no, f32[9,9]), %one) attention"}}
}}
"""
    (kernel,) = kernels(text)
    assert kernel.operations == 2 * 2 * 143 * 64 * 256
    assert kernel.moved == 2 * (2 * 143 * 64 + 64 * 256 + 2 * 143 * 256) + 4 * (256 + 2 * 2 * 256)
