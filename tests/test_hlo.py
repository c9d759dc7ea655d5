"""The collectives of HLO texts, against counts and bytes by hand."""

import pytest

from benchmarks.hlo import Total, collectives, nbytes, parse, totals

LOOP = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (carry: (s32[], bf16[8,1024])) -> (s32[], bf16[8,1024]) {
  %carry = (s32[]{:T(128)}, bf16[8,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = bf16[8,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=1
  %gather = (bf16[256,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)S(1)}) all-gather-start(%x), \
channel_id=1, replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}, use_global_device_ids=true, \
metadata={op_name="jit(step)/while/body/dot_general"}
  %done = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%gather)
  %moved = bf16[8,1024]{1,0:T(8,128)(2,1)} collective-permute(%x), channel_id=2, \
source_target_pairs={{0,1},{1,0}}
  ROOT %out = (s32[]{:T(128)}, bf16[8,1024]{1,0:T(8,128)(2,1)}) tuple(%i, %moved)
}

%condition (carry: (s32[], bf16[8,1024])) -> pred[] {
  %carry = (s32[]{:T(128)}, bf16[8,1024]{1,0}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (p: (s32[], bf16[8,1024]), g: f32[4096]) -> f32[4096] {
  %p = (s32[]{:T(128)}, bf16[8,1024]{1,0:T(8,128)(2,1)}) parameter(0)
  %g = f32[4096]{0:T(1024)} parameter(1)
  %while = (s32[]{:T(128)}, bf16[8,1024]{1,0:T(8,128)(2,1)}) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"22"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %norm = f32[4096]{0:T(1024)} all-reduce(%g), channel_id=3, replica_groups={{0,4,8,12},{1,5,9,13}}, \
to_apply=%add
}
"""

FUSED = """\
HloModule jit_step, num_partitions=8

%all-reduce-scatter.1 (input.1: f32[64,32]) -> f32[8,32] {
  %input.1 = f32[64,32]{1,0} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0} all-reduce(%input.1), replica_groups={}, to_apply=%add
  ROOT %slice = f32[8,32]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,32}
}

%wrapped (p0: f32[16]) -> f32[16] {
  %p0 = f32[16]{0} parameter(0)
  ROOT %swap = f32[16]{0} all-to-all(%p0), replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main (x: f32[64,32]) -> f32[8,32] {
  %x = f32[64,32]{1,0} parameter(0)
  %two = (f32[10]{0}, pred[6]{0}) all-reduce(%x, %x), replica_groups=[1,8]<=[8], to_apply=%add
  %start = ((f32[16]{0}), f32[16]{0}, u32[]) async-start(%x), calls=%wrapped
  %end = f32[16]{0} async-done(%start)
  ROOT %scatter = f32[8,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_loops_count_as_often_as_they_run() -> None:
    found = {c.kind: c for c in collectives(LOOP)}
    gathered = found["all-gather"]
    assert (gathered.times, gathered.group, gathered.shapes) == (22, 4, "bf16[1024,1024]")
    assert gathered.where == "jit(step)/while/body/dot_general"
    assert totals(list(found.values())) == {
        # Of the four quarters of 1024·1024 bfloat16, each device receives three.
        "all-gather": Total(22, 22 * 3 * 1024 * 1024 * 2 // 4),
        # Three quarters come in while sums are formed, three while they are handed round.
        "all-reduce": Total(1, 2 * 3 * 1024 * 4),
        "collective-permute": Total(22, 22 * 8 * 1024 * 2),
    }
    assert list(totals(list(found.values()))) == ["all-gather", "all-reduce", "collective-permute"]


COUNTED = """\
%condition (carry: (s32[], bf16[8,1024])) -> pred[] {
  %blocks = s32[]{:T(128)} constant(23)
  %carry = (s32[]{:T(128)}, bf16[8,1024]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %blocks), direction=LT, metadata={op_name="cond/lt"}
}
"""


@pytest.mark.parametrize("note, turns", [("", 23), ('{"known_trip_count":{"n":"5"}}', 5)])
def test_loops_without_a_note_count_up_to_a_constant(note: str, turns: int) -> None:
    before, _, after = LOOP.partition("%condition (carry")
    text = before + COUNTED + after[after.index("\n\nENTRY") :]
    text = text.replace(
        '{"known_trip_count":{"n":"22"},"known_init_step":{"init":"0","step":"1"}}', note or "{}"
    )
    found = totals(collectives(text))
    assert (found["all-gather"].count, found["collective-permute"].count) == (turns, turns)
    unknown = text.replace("constant(23)", "parameter(1)")
    assert note or totals(collectives(unknown))["all-gather"].count == 1


IN_PARTS = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%fused_computation.1 (p0: f32[4,32]) -> (f32[32,32], u32[]) {
  %p0 = f32[4,32]{1,0} parameter(0)
  %first = f32[32,32]{1,0} all-gather(%p0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.2 (p0: f32[4,32]) -> (f32[32,32], f32[8]) {
  %p0 = f32[4,32]{1,0} parameter(0)
  %next = f32[32,32]{1,0} all-gather(%p0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

%fused_computation.3 (p0: f32[4,32]) -> f32[32,32] {
  %p0 = f32[4,32]{1,0} parameter(0)
  ROOT %last = f32[32,32]{1,0} all-gather(%p0), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (x: f32[4,32]) -> f32[32,32] {
  %x = f32[4,32]{1,0} parameter(0)
  %start = (f32[32,32]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%fused_computation.1
  %beside = (f32[32,32]{1,0}, f32[8]{0}) fusion(%x), kind=kOutput, calls=%async_collective_fusion.2
  ROOT %done = f32[32,32]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.3
}
"""


def test_a_collective_in_parts_is_one() -> None:
    assert totals(collectives(IN_PARTS)) == {"all-gather": Total(1, 32 * 32 * 4 * 7 // 8)}


def test_called_computations_and_tuples() -> None:
    assert totals(collectives(FUSED)) == {
        "all-reduce": Total(1, 2 * 7 * (10 * 4 + 6) // 8),
        "reduce-scatter": Total(1, 7 * 8 * 32 * 4),  # a fused all-reduce of which a slice alone is kept
        "all-to-all": Total(1, 16 * 4 // 2),
    }


@pytest.mark.parametrize(
    "shape, bytes_", [("f32[]", 4), ("pred[3]", 3), ("bf16[2,3]{1,0}", 12), ("s4[8]", 4), ("f8e4m3fn[5]", 5)]
)
def test_bytes_of_an_array(shape: str, bytes_: int) -> None:
    assert nbytes(shape) == bytes_


@pytest.mark.parametrize(
    "groups, size",
    [
        ("{}", 16),
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,8]<=[16]", 8),
        ("[8,2]<=[2,8]T(1,0)", 2),
        ("mesh['axis_0'=4,'axis_1'=1,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_0'}", 4),
        ("mesh['axis_0'=4,'axis_1'=4] {'axis_0','axis_1'}", 16),
        ("mesh['axis_0'=16] {'axis_0':(1)2}", 2),
    ],
)
def test_devices_that_take_part(groups: str, size: int) -> None:
    text = (
        "HloModule m, num_partitions=16\n\nENTRY %m (a: f32[16]) -> f32[16] {\n"
        "  %a = f32[16]{0} parameter(0)\n"
        f"  ROOT %r = f32[16]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add\n}}\n"
    )
    (found,) = collectives(text)
    assert (found.group, found.received) == (size, 2 * 64 * (size - 1) // size)


def test_groups_that_are_written_in_an_unknown_way() -> None:
    text = "ENTRY %m (a: f32[]) -> f32[] {\n  ROOT %r = f32[] all-reduce(%a), replica_groups=<new>\n}\n"
    with pytest.raises(ValueError, match="<new>"):
        collectives(text)


def test_a_program_without_collectives_and_another_text() -> None:
    assert (
        collectives("HloModule x\n\nENTRY %m (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}\n")
        == []
    )
    with pytest.raises(ValueError, match="no entry"):
        parse("not a program")
