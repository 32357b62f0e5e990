"""Reading optimized HLO text: layouts, instructions, how often loops run."""

from pathlib import Path

import pytest

from mmjax.plan.hlo import executed, parse, trip_count

TEXTS = Path(__file__).parent / "hlo"


def read(name):
    return parse((TEXTS / f"{name}.txt").read_text())


def shape(text):
    module = parse(f"ENTRY %main (x: f32[]) -> f32[] {{\n  ROOT %x = {text} parameter(0)\n}}")
    return module.computations["main"].root.shapes[0]


@pytest.mark.parametrize(
    "text, space, stored",
    [
        ("f32[8,128]{1,0:T(8,128)}", 0, 8 * 128 * 4),
        ("f32[9,129]{1,0:T(8,128)}", 0, 16 * 256 * 4),
        ("bf16[196,100]{1,0:T(8,128)(2,1)S(1)}", 1, 200 * 128 * 2),
        ("f32[5,196,7]{0,1,2:T(8,128)}", 0, 7 * 200 * 128 * 4),  # dim 0 is the fastest
        ("pred[100]{0:T(1024)(128)(4,1)}", 0, 1024),
        ("s32[3]{0:T(128)S(6)}", 6, 128 * 4),
        ("f32[3,5,100]{2,1,0:T(*,128)}", 0, 3 * 512 * 4),
        ("s4[256,128]{1,0:T(8,128)E(4)}", 0, 256 * 64),
        ("f8e4m3fn[32,128]{1,0:T(8,128)(4,1)}", 0, 32 * 128),
        ("f32[3,5]", 0, 60),
        ("bf16[3,5]{1,0:S(5)}", 5, 30),
        ("token[]", 0, 0),
    ],
)
def test_a_shape_has_its_space_and_the_bytes_its_tiles_take(text, space, stored):
    assert (shape(text).space, shape(text).bytes) == (space, stored)


def test_instructions_keep_operands_attributes_and_place():
    entry = read("over_b").computations[read("over_b").entry]
    gather = next(i for i in entry.instructions.values() if i.opcode == "all-gather")
    assert gather.attributes["dimensions"] == "{0}"
    assert gather.attributes["replica_groups"] == "{{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}"
    assert gather.op_name == "jit(run)/shard_map/all_gather"
    start = next(i for i in entry.instructions.values() if i.opcode == "collective-permute-start")
    assert (start.is_start, start.is_done, start.kind) == (True, False, "collective-permute")
    assert [s.space for s in start.shapes] == [0, 1, 2, 2]
    assert entry.instructions[start.operands[0]].opcode == "parameter"
    assert entry.root.opcode == "tuple" and len(entry.root.operands) == 5  # printed with /*index=n*/ remarks among them


def test_results_know_which_operand_they_overwrite():
    adam = read("adam")
    assert adam.computations[adam.entry].root.aliases == {0: 0, 1: 2, 2: 3}
    add = read("add_one")
    assert add.computations[add.entry].root.aliases == {}


@pytest.mark.parametrize("name, trips", [("scan", 12), ("saved", 12), ("ring", 8)])
def test_a_loop_runs_as_often_as_its_counter_says(name, trips):
    module = read(name)
    loops = [(c, i) for c in module.computations.values() for i in c.instructions.values() if i.opcode == "while"]
    assert [trip_count(module, *loop) for loop in loops] == [trips]


LOOP = """
%body (c: (s32[], s32[], f32[8])) -> (s32[], s32[], f32[8]) {
  %c = (s32[], s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] get-tuple-element(%c), index=1
  %x = f32[8]{0} get-tuple-element(%c), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[8]{0} negate(%x)
  ROOT %t = (s32[], s32[], f32[8]{0}) tuple(%next, %n, %y)
}

%condition (c: (s32[], s32[], f32[8])) -> pred[] {
  %c = (s32[], s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] get-tuple-element(%c), index=1
  ROOT %more = pred[] compare(%i, %n), direction=LE
}

ENTRY %main (n: s32[], x: f32[8]) -> (s32[], s32[], f32[8]) {
  %zero = s32[] constant(0)
  %n = s32[] {N}
  %x = f32[8]{0} parameter(1)
  %t = (s32[], s32[], f32[8]{0}) tuple(%zero, %n, %x)
  ROOT %loop = (s32[], s32[], f32[8]{0}) while(%t), condition=%condition, body=%body{CONFIG}
}
"""


@pytest.mark.parametrize(
    "bound, config, trips, certain",
    [
        ("constant(10)", "", 6, True),  # 0, 2, .. 10
        ("constant(-1)", "", 0, True),
        ("parameter(0)", "", 1, False),
        ("parameter(0)", ', backend_config={"known_trip_count":{"n":"7"}}', 7, True),
    ],
)
def test_trip_counts_come_from_carried_bounds_or_the_compiler(bound, config, trips, certain):
    module = parse(LOOP.replace("{N}", bound).replace("{CONFIG}", config))
    [negate] = [run for run in executed(module, lambda c, i: 0) if run.instruction.opcode == "negate"]
    assert (negate.count, negate.certain) == (trips, certain)


INNER = """%zero = s32[] constant(0)
  %ten = s32[] constant(10)
  %carried = (s32[], s32[], f32[8]{0}) tuple(%zero, {BOUND}, %x)
  %loop = (s32[], s32[], f32[8]{0}) while(%carried), condition=%condition, body=%body
  %y = f32[8]{0} get-tuple-element(%loop), index=2"""


@pytest.mark.parametrize(("bound", "count", "certain"), [("%ten", 36, True), ("%x", 6, False)])
def test_a_loop_in_a_loop_runs_as_often_as_both_say(bound, count, certain):
    """Six times in each of six; where the inner bound is data, once in each."""
    inner, entry = LOOP.replace("{N}", "constant(10)").replace("{CONFIG}", "").split("ENTRY")

    def outer(text):
        return text.replace("%body", "%outer_body").replace("%condition", "%outer_condition")

    around = outer(inner).replace("%y = f32[8]{0} negate(%x)", INNER.replace("{BOUND}", bound))
    module = parse(f"{inner}{around}ENTRY{outer(entry)}")
    [negate] = [run for run in executed(module, lambda c, i: 0) if run.instruction.opcode == "negate"]
    assert (negate.count, negate.certain) == (count, certain)


def test_of_a_conditional_the_heavier_branch_runs():
    module = read("cond")

    def branches(heavy):
        runs = executed(module, lambda c, i: int(heavy in i.op_name))
        return {part for run in runs for part in run.instruction.op_name.split("/") if part.startswith("branch_")}

    assert branches("branch_0_fun/add") == {"branch_0_fun"}
    assert branches("branch_1_fun") == {"branch_1_fun"}


def test_what_an_asynchronous_call_wraps_runs_once():
    module = parse("""
%wrapped (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0} parameter(0)
  ROOT %n = f32[8,128]{1,0} negate(%p)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %s = ((f32[8,128]{1,0}), f32[8,128]{1,0}, u32[]) async-start(%x), calls=%wrapped
  ROOT %d = f32[8,128]{1,0} async-done(%s)
}
""")
    assert [run.instruction.opcode for run in executed(module, lambda c, i: 0)] == ["parameter", "parameter", "negate"]


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule nothing")


def test_a_kernel_whose_notes_have_line_breaks_is_one_instruction():
    text = """HloModule jit_step

%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %kernel.1 = f32[4]{0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"notes":{"x":
"a": 1
}}, metadata={op_name="jit(step)/kernel"}
  ROOT %sum.1 = f32[4]{0} add(%kernel.1, %p)
}

ENTRY %main (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  ROOT %call.1 = f32[4]{0} call(%q), to_apply=%body
}
"""
    module = parse(text)
    assert list(module.computations["body"].instructions) == ["p", "kernel.1", "sum.1"]
    assert module.computations["body"].root.operands == ("kernel.1", "p")
