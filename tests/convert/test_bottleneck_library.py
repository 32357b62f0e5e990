"""Bottlenecks beside the `adapters` library's own, which has an environment of its own (`adapters_peer.py`).

`MMJAX_ADAPTERS_PYTHON` names a Python that has it; without, one is made.
"""

import functools
import json
import os
import pathlib
import subprocess
import venv

import jax
import numpy as np
import optax
import pytest
from cases import answered
from parity import assert_close
from test_families import OPTIMIZERS

from mmjax.adapt import base_of, trained_patterns
from mmjax.cli import main
from mmjax.convert import load
from mmjax.convert.bottleneck.layout import LEAVES, places
from mmjax.convert.huggingface import family_of
from mmjax.core.trees import leaves_by_path
from mmjax.train.run import Run
from mmjax.train.trained import trained_of

pytestmark = pytest.mark.slow
PEER = pathlib.Path(__file__).parent / "adapters_peer.py"
NEEDS = ("torch==2.13.0", "adapters==1.3.0", "transformers==4.57.6", "safetensors", "pillow")
# Case -> our answer -> theirs.
CASES = {
    "bert-pfeiffer": {"classes": "logits"},
    "bert-houlsby": {"tokens.text": "last_hidden_state", "pooler": "pooler_output"},
    "bert-mixed": {"masked_lm": "logits"},
    "roberta-houlsby": {"classes": "logits"},
    "gpt2-pfeiffer": {"caption": "logits"},
    "llama-mixed": {"caption": "logits"},
    "clip-houlsby": {"dual": "logits_per_image"},
    "clip-text": {"dual": "logits_per_image"},
    "clip-text-alone": {"projection": "text_embeds", "tokens.text": "last_hidden_state"},
    "clip-image-alone": {"projection": "image_embeds"},
    "vit-pfeiffer": {"classes": "logits"},
    "vit-houlsby": {"tokens.image": "last_hidden_state", "pooler": "pooler_output"},
}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """One that has the library."""
    if "MMJAX_ADAPTERS_PYTHON" in os.environ:
        return os.environ["MMJAX_ADAPTERS_PYTHON"]
    home = tmp_path_factory.mktemp("adapters")
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin/pip", "install", "--quiet", *NEEDS], check=True)
    return home / "bin/python"


@pytest.fixture(scope="module")
def made(python, tmp_path_factory):
    """Folder of the cases as the library has made them, gone through ours and back to the library."""
    home = tmp_path_factory.mktemp("cases")
    own = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, PEER, "make", home], check=True, env=own)
    for name in CASES:
        base, theirs, run, ours = (str(home / name / part) for part in ("base", "theirs", "run", "ours"))
        assert main(["convert", "from-adapters", base, theirs, run]) == 0
        assert main(["convert", "to-adapters", run, ours]) == 0
    subprocess.run([python, PEER, "read", home], check=True, env=own)
    return home


@functools.cache
def opened(folder):
    """Our model with its adapter, what it reads, and what the library found."""
    model, params = load(folder / "run")
    given = dict(np.load(folder / "inputs.npz"))
    renamed = {"input_ids": "text", "attention_mask": "text_mask", "pixel_values": "image"}
    batch = {renamed[name]: x for name, x in given.items()}
    if "text_mask" in batch:
        batch |= {"text": batch["text"].astype(np.int32), "text_mask": batch["text_mask"].astype(bool)}
    if "image" in batch:
        batch["image"] = batch["image"].transpose(0, 2, 3, 1)
    return model, params, batch, dict(np.load(folder / "outputs.npz"))


@pytest.mark.parametrize("name", CASES)
def test_both_libraries_answer_alike_after_both_ways(name, made):
    model, params, batch, theirs = opened(made / name)
    found = answered(model, params, batch, tuple(CASES[name]))
    back = dict(np.load(made / name / "read.npz"))
    for ours, field in CASES[name].items():
        assert_close(found[ours], theirs[field])
        assert_close(back[field], theirs[field], 1e-6)  # the library's own answer with what we have written
    without = answered(model, base_of(params), batch, tuple(CASES[name]))
    assert all(np.abs(np.asarray(x) - found[ours]).max() > 1e-2 * np.abs(x).max() for ours, x in without.items())
    about = json.loads((made / name / "about.json").read_text())
    assert about["name"] == "mmjax" and not about["missing"] and not about["unexpected"], about


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_a_step_are_the_librarys(name, made):
    model, params, batch, theirs = opened(made / name)
    own = trained_of(trained_patterns(model, Run(made / name / "run").experiment().adapt), (), params)
    rng = np.random.default_rng(1)  # a weight of every output, as the peer draws them
    weights = {field: rng.normal(size=x.shape).astype(np.float32) for field, x in theirs.items()}

    def loss(leaves):
        found = answered(model, own.bind(leaves, params), batch, tuple(CASES[name]))
        return sum((found[ours] * weights[field]).sum() for ours, field in CASES[name].items())

    mine = own.of(params)
    gradient = jax.grad(loss)(mine)
    tx = OPTIMIZERS["adamw"][0].build(mine, 1)
    with jax.numpy_dtype_promotion("standard"):
        stepped = optax.apply_updates(mine, tx.update(gradient, tx.init(mine), mine)[0])
    zeros = jax.tree.map(np.zeros_like, params)
    for tree, file in ((gradient, "gradients.npz"), (stepped, "stepped.npz")):
        wanted = dict(np.load(made / name / file))
        found = named(model, leaves_by_path(own.put(zeros, tree)), leaves_by_path(params))
        assert {key.replace(".theirs.", ".") for key in wanted} == found.keys()
        for key, x in wanted.items():
            error = np.abs(found[key.replace(".theirs.", ".")] - x).max() / np.abs(x).max()
            assert error <= 1e-5, (key, error)


def named(model, tree, params):
    """Leaves of a tree like the parameters, under the library's names without the adapter's."""
    found = {}
    for place in places(model, family_of(model).architecture(model)):
        for n, module in enumerate(place.modules):
            if f"{place.room}/bottleneck_down" not in params:
                continue
            width = int(np.any(params[f"{place.room}/bottleneck_down"][n], axis=0).sum())
            own = {name: np.asarray(tree[f"{place.room}/{name}"][n]) for name in LEAVES}
            own["bottleneck_down"] = own["bottleneck_down"][:, :width]
            own |= {name: own[name][:width] for name in ("bottleneck_down_bias", "bottleneck_up")}
            found |= {f"{module}.{theirs}": own[name].T for name, theirs in LEAVES.items() if width}
    return found
