import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmjax.cli import main
from mmjax.plan import compile as compiling

TINY, WRITER = (str(Path(__file__).parent / name) for name in ("plan_tiny.py", "plan_writer.py"))


def test_a_small_step_is_compiled_for_a_tpu_that_is_not_there():
    one = [f"--model.encoders.{tower}.depth=1" for tower in ("image", "text")]
    words = ["plan", TINY, "--topology", "v5e:2x2", "--batch_per_chip", "8", "--data.test.batch_size", "8", *one]
    done = subprocess.run([sys.executable, "-m", "mmjax.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    measured, predicted = found["measured"], found["predicted"]
    assert lines[0].endswith("v5e:2x2: 4 chips, data 4; 32 examples a step")
    assert "data.train is not at hand" in lines[1]
    figures = [line for line in lines[2:] if line]
    assert all(line.startswith("predicted ") for line in figures)

    params = measured["sizes"]["params"]
    assert params == 4 * measured["sizes"]["parameters"]
    assert measured["sizes"]["ema"] == params
    assert 2 * params <= measured["sizes"]["optimizer"] < 2 * params + 100  # two moments and a few counters
    assert measured["memory"]["arguments"] >= 4 * params
    # The state is donated; beside it are the gradients and what the backward pass reads.
    assert measured["memory"]["outputs"] < 0.01 * params and measured["memory"]["temporaries"] < 3.5 * params
    # Each of the four copies of float32 parameters (with moments and average) is read and written once, and little else.
    assert 8 * params < measured["traffic"]["read"] + measured["traffic"]["written"] < 9 * params
    # Gradients are reduced over the data axis in bfloat16, with some activations.
    sent = sum(measured["collectives"].values())
    assert 2 * 3 / 4 * params / 2 <= sent < params
    assert all(name.endswith(" data") for name in measured["collectives"])
    blocks = 12 * 128 * 128 * (16 + 16)  # a layer of each tower, 16 tokens each: 12 D^2 weights a layer
    assert measured["model_flops"] > 3 * 32 * 2 * blocks
    assert predicted["step_seconds"] == max(predicted["seconds"].values())
    assert predicted["hours"] == pytest.approx(predicted["step_seconds"])  # 3600 steps


def test_on_gpus_what_is_known_without_compiling(capsys):
    assert main(["plan", TINY, "--topology", "gpu:2"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["predicted"] is None
    assert found["measured"]["memory"] == {}
    assert found["measured"]["mesh"]["data"] == 2
    assert found["measured"]["hardware_flops"] > 0.9 * found["measured"]["model_flops"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "plan needs --topology, for instance --topology v5e:4x4"),
        (["--topology", "v5e:3x3"], "v5e comes as 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        (["--topology", "v5e:2x2", "--mesh.data", "3"], "does not multiply to the 4 devices"),
        (["--topology", "v5e:2x2", "--slices", "two"], "--slices two: use a whole number from 1 up"),
        (["--topology", "v5e:2x2", "--batch_per_chip", "0"], "--batch_per_chip 0: use a whole number from 1 up"),
        (["--topology", "gpu:2", "--search"], "--search compiles"),
        (["--topology", "gpu:4"], "data.test.batch_size=6 does not divide over 4 devices"),
        (["--topology", "v5e:2x2", "--modle.dtype", "float32"], "did you mean 'model.dtype'?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, words, said):
    assert main(["plan", TINY, *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        compiling.importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else find(name, *rest)
    )
    assert main(["plan", TINY, "--topology", "v5e:2x2", "--data.test.batch_size", "8"]) == 2
    assert "needs libtpu; pip install 'mmjax[tpu]' brings it" in capsys.readouterr().err


def test_writing_is_priced_beside_what_the_compiler_says_of_it(capsys):
    """A decoder so small that no figure but those of memory can be held against the counts; `test_decoding` has large ones."""
    small = {"vocab_size": 512, "width": 256, "depth": 1, "heads": 2, "max_length": 64}
    flags = [f"--model.decoders.text.{name}={value}" for name, value in small.items()]
    words = ["plan", WRITER, "--topology", "v5e:2x2", "--mesh.tensor", "2", "--decode", "64,32,32", "--compile", *flags]
    assert main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert lines[0].endswith(
        "v5e:2x2: 4 chips, data 2 x tensor 2; decoders.text writes 32 tokens after each of 64 prompts of 32, in bfloat16"
    )
    counted, compiled = found["decode"], found["compiled"]
    assert counted["memory"]["cache"] == 2 * 32 * 64 * 128 * 2  # half the texts, half the heads
    assert compiled["memory"]["arguments"] == pytest.approx(counted["memory"]["parameters"], rel=0.03)
    assert compiled["memory"]["temporaries"] > counted["memory"]["weights"] + counted["memory"]["cache"]
    assert 0 < compiled["traffic"]["token"] < compiled["traffic"]["prefill"]
    sums = "all-reduce tensor"  # XLA sums with each other what it needs, and numbers of rows
    assert compiled["collectives"]["token"][sums] == pytest.approx(counted["token"]["collectives"][sums], rel=0.4)
    assert found["predicted"]["token_bound"] in found["predicted"]["token"]
    assert sum(line.startswith("compiled ") for line in lines) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--topology", "v5e:1x1", "--decode", "8;1;2"], "--decode 8;1;2: use BATCH,PROMPT,NEW"),
        (["--topology", "gpu:2", "--decode", "8,1,2"], "there are none of a gpu: name a TPU topology"),
        (["--topology", "v5e:1x1", "--decode", "8,1,2", "--search"], "--search is about a step: use one of them"),
        (["--topology", "v5e:1x1", "--compile"], "--compile goes with --decode"),
        (["--decode", "8,1,2"], "plan needs --topology"),
        (["--topology", "v5e:1x1", "--decode", "2000,128,128"], "17.58 GiB of them its cache; use a batch of at most 1712"),
        (
            ["--topology", "v5e:1x1", "--decode", "1,8,8", "--model.decoders.text.depth", "1200"],
            "use more chips, with --mesh.tensor",
        ),
    ],
)
def test_what_cannot_be_written_is_one_line(capsys, words, said):
    assert main(["plan", WRITER, *words]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
