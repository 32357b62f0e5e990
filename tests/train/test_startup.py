"""Before the first step: programs that were compiled before are found again, and said to be."""

import contextlib
import dataclasses
import re

import jax
import tiny

from mmjax.parallel.mesh import use_mesh
from mmjax.train.startup import about_data, agree_on_data, compile_steps, open_run


def test_a_second_start_finds_its_step_in_the_cache_and_says_so(tmp_path):
    made = tiny.experiment(evaluate={})
    mesh = tiny.ONE.build(jax.devices()[:1])
    run = tiny.Run(tmp_path)
    said = []
    with use_mesh(mesh), contextlib.ExitStack() as held:
        setup = open_run(made, run, mesh, held, said.append)
        first = compile_steps(setup, made.groups())
        jax.clear_caches()
        second = compile_steps(setup, made.groups())
    kind = (("train",), (0,))
    assert list(first[0]) == list(second[0]) == [kind]
    assert re.fullmatch(r"compiled in \d+\.\d s, from the compilation cache", second[1])
    assert re.fullmatch(r"compiled in \d+\.\d s(, from the compilation cache)?", first[1])
    assert second[0][kind][1] == setup.step_flops(("train",)) > 0
    counted = dataclasses.replace(setup, flops={}).step_flops(("train",))
    assert setup.flops == {("train",): counted}, "counted in the trace that set-up makes anyway"
    agree_on_data(setup)
    assert about_data(setup)["test"]["size"] == 360
    assert run.tokenizer().vocab_size == setup.tokenizer.vocab_size
    run.keep_tokenizers({})
    assert run.tokenizer() is None
