"""What writing texts takes, by hand: Radford 2019's 124,439,808 parameters, and heads that share keys."""

import dataclasses

import jax
import jax.numpy as jnp
import plan_writer
import pytest

from mmjax.core.errors import UserError
from mmjax.models import Multimodal, param_shapes
from mmjax.models.decoders import SplicedDecoder, TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.parallel.mesh import AXES, Mesh
from mmjax.plan.compile import sent_in, worker
from mmjax.plan.decode_program import Asked, asked, inputs, writer
from mmjax.plan.decoding import decoding
from mmjax.plan.decoding_report import times
from mmjax.plan.topology import parse_topology

ASK = Asked(8, 128, 128)
GROUPED = {"vocab_size": 1000, "width": 512, "depth": 4, "heads": 8, "kv_heads": 2, "max_length": 256}
SMALL = {"vocab_size": 50, "width": 32, "depth": 2, "heads": 4}


def mesh(**sizes):
    return {axis: sizes.get(axis, 1) for axis in AXES}


def gpt2(**fields):
    return plan_writer.experiment(**fields).model


def captioner(cls=TextDecoder, **fields):
    image = ViT(image_size=(8, 8), patch=(4, 4), width=32, depth=1, heads=4)  # four patches
    return Multimodal(encoders={"image": image}, decoders={"caption": cls(max_length=32, **(SMALL | fields))})


def test_gpt2_by_hand():
    found = decoding(gpt2(), mesh(), ASK)
    assert found.memory["parameters"] == 4 * 124_439_808
    norms, positions = 25 * 2 * 768, 1024 * 768  # float32 whatever the dtype; a row a text
    assert found.weights == 2 * (124_439_808 - positions) + 2 * norms + 8 * 768 * 2
    assert found.cache == {"text": 2 * 12 * 8 * 256 * 768 * 2, "context": 0}  # keys and values, bfloat16
    blocks = 12 * 12 * 768**2  # the matrices of a layer hold 12 D^2
    assert found.prefill.flops == 2 * 8 * (128 * blocks + 50257 * 768) + 4 * 8 * 128**2 * 768 * 12
    assert found.token.flops == pytest.approx(2 * 8 * (blocks + 50257 * 768) + 4 * 8 * 256 * 768 * 12, rel=1e-3)
    logits = 2 * 4 * 8 * 50257
    assert found.token.traffic == {"weights": found.weights, "cache": found.cache["text"], "logits": logits}
    assert found.token.collectives == {}

    v5e = parse_topology("v5e:1x1")
    predicted = times(found, v5e)
    turn = (found.weights + found.cache["text"] + logits) / 819e9
    assert predicted.token_bound == "hbm"
    assert predicted.token_seconds == pytest.approx(turn)
    assert predicted.tokens_per_second == pytest.approx(8 / turn)
    assert predicted.prefill["compute"] == pytest.approx(found.prefill.flops / 197e12)
    assert predicted.seconds == pytest.approx(predicted.prefill_seconds + 127 * turn)  # the prompts give the first token
    assert predicted.whole_tokens_per_second == pytest.approx(8 * 128 / predicted.seconds)


def test_grouped_heads_split_over_chips_by_hand():
    """Two key heads of 64; half the texts and one key head a chip; each layer's two sums, and that of the words."""
    found = decoding(gpt2(**GROUPED), mesh(data=2, tensor=2), Asked(6, 20, 10))
    whole = 2 * 4 * 6 * 30 * 2 * 64 * 2
    assert found.cache["text"] == whole
    assert found.memory["cache"] == found.token.traffic["cache"] == whole // 4
    assert decoding(gpt2(**GROUPED | {"kv_heads": 0}), mesh(), Asked(6, 20, 10)).cache["text"] == 4 * whole
    assert found.token.collectives == {"all-reduce tensor": 2 * (1 / 2) * (2 * 4 + 1) * 3 * 512 * 2}
    assert found.prefill.collectives == {"all-reduce tensor": 20 * found.token.collectives["all-reduce tensor"]}
    one = decoding(gpt2(**GROUPED), mesh(), Asked(6, 20, 10))
    assert found.token.flops == one.token.flops / 4
    assert found.token.traffic["weights"] == pytest.approx(one.token.traffic["weights"] / 2, rel=0.02)  # but norms, biases


def test_weights_that_fsdp_splits_are_sent_written_and_read_for_each_token():
    one = decoding(gpt2(**GROUPED), mesh(), Asked(8, 20, 10))
    four = decoding(gpt2(**GROUPED), mesh(fsdp=4), Asked(8, 20, 10))
    rows = (8 - 2) * 512 * 2  # of positions, a row for each of a chip's texts
    assert four.token.collectives == {"all-gather fsdp": pytest.approx(3 / 4 * (one.weights - rows))}
    assert four.token.traffic["weights"] == pytest.approx((2 + 1 / 4) * (one.weights - rows))
    assert four.memory["cache"] == one.memory["cache"] / 4


@pytest.mark.parametrize(
    ("model", "context"),
    [
        (gpt2(), 0),
        (gpt2(**GROUPED, positions="rotary"), 0),
        (captioner(kv_heads=2, head_width=16), 4),
        (captioner(SplicedDecoder, place=7, skip=0), 0),
    ],
    ids=["gpt2", "grouped", "captioner", "spliced"],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_cache_is_as_large_as_the_one_that_begin_gives(model, context, dtype):
    model, name, ask = model.copy(dtype=dtype), writer(model), Asked(3, 20, 12)
    cast = jax.eval_shape(lambda params: jax.tree.map(lambda x: x.astype(dtype), params), param_shapes(model))

    def begin(params, batch, ids):
        forward = BoundForward(model, params, batch)
        tokens = {one: forward.tokens(one) for one in model.decoders[name].context}
        return model.apply({"params": params}, name, ids, ids > 0, ids, tokens or None, method="begin")

    ids = jax.ShapeDtypeStruct((ask.batch, ask.slots), jnp.int32)
    _, cache = jax.eval_shape(begin, cast, inputs(model, name, ask.batch), ids)
    found = decoding(model, mesh(), ask)
    assert found.dtype == dtype
    assert sum(found.cache.values()) == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert (found.cache["context"] > 0) == (context > 0)
    if context:
        assert found.cache["context"] * ask.slots == found.cache["text"] * context


def test_what_reads_the_context_is_no_part_of_a_token():
    """Keys and values of a context are made with the prompts; its encoder runs there too."""
    found = decoding(captioner(), mesh(), Asked(2, 4, 4))
    alone = decoding(captioner(context=()), mesh(), Asked(2, 4, 4))
    layer = 2 * (2 * 32 * 32 + 2 * 32) * 2  # of each of two layers, q and out with biases, in bfloat16
    assert found.weights - alone.weights == layer + 2 * 2 * 32 * 4  # and the norm, float32
    assert found.prefill.flops > alone.prefill.flops + 2 * 2 * 4 * 12 * 32**2  # the encoder's layer
    assert found.prefill.traffic["parameters"] > alone.prefill.traffic["parameters"] + 4 * 12 * 32**2


def test_an_untied_table_is_looked_up_and_a_tied_one_read():
    """1000 words of 512: the table of logits is read either way."""
    tied, apart = (decoding(gpt2(**GROUPED, tied=tied), mesh(), Asked(6, 20, 10)) for tied in (True, False))
    assert apart.weights - tied.weights == 6 * 512 * 2
    assert apart.memory["parameters"] - tied.memory["parameters"] == 4 * 1000 * 512


LARGE = {"vocab_size": 50304, "width": 2048, "depth": 8, "heads": 16}


@pytest.mark.slow  # a minute each; `test_plan_command` has a small one
@pytest.mark.parametrize(
    ("fields", "topology", "sizes", "ask"),
    [
        ({}, "v5e:1x1", {}, ASK),
        (LARGE, "v5e:1x1", {}, Asked(8, 512, 512)),
        (LARGE | {"kv_heads": 4, "tied": False, "positions": "rotary"}, "v5e:1x1", {}, Asked(8, 512, 512)),
        (LARGE, "v5e:2x2", {"tensor": 4}, Asked(8, 512, 512)),
    ],
    ids=["gpt2", "large", "grouped", "tensor"],
)
def test_the_compiler_says_about_the_same(fields, topology, sizes, ask):
    """`docs/tpu.md` has the figures."""
    e, where = plan_writer.experiment(**fields), parse_topology(topology)
    found = decoding(e.model, mesh(**sizes), ask)
    with worker(where) as compiling:
        reply = compiling.ask_decode(dataclasses.replace(e, mesh=Mesh(**sizes)), ask.batch, ask.prompt, ask.new)
    assert reply["memory"]["arguments"] == pytest.approx(found.memory["parameters"], rel=1e-3)
    assert 1 <= sum(reply["memory"].values()) / sum(found.memory.values()) < 1.25
    assert 0.7 < reply["trip"]["traffic"] / sum(found.token.traffic.values()) < 1.2
    sent, counted = sent_in(reply["trip"]), found.token.collectives
    assert sum(sent.values()) == pytest.approx(sum(counted.values()), rel=0.1)


@pytest.mark.parametrize(
    ("model", "word", "sizes", "said"),
    [
        (gpt2(), "8,128", {}, "--decode 8,128: use BATCH,PROMPT,NEW, three whole numbers from 1 up"),
        (gpt2(), "8,0,4", {}, "--decode 8,0,4: use BATCH,PROMPT,NEW"),
        (gpt2(), "8,1.5,4", {}, "--decode 8,1.5,4: use BATCH,PROMPT,NEW"),
        (gpt2(), "8,1000,25", {}, "max_length=1024: use at most 24 new tokens"),
        (gpt2(), "8,1024,1", {}, "max_length=1024: use a prompt shorter than 1024"),
        (gpt2(), "6,8,8", {"data": 2, "fsdp": 2}, "a batch of 6 does not divide over 4 devices; use a multiple of 4"),
        (gpt2(**GROUPED), "8,8,8", {"tensor": 4}, "model.decoders.text.kv_heads=2 does not divide over mesh.tensor=4"),
        (captioner(SplicedDecoder, place=7, skip=0), "8,4,8", {}, "a prompt holds the 4 tokens of its image: use 5 or more"),
        (
            Multimodal(encoders={"text": TextTransformer(**SMALL)}),
            "8,4,8",
            {},
            "no decoder writes texts, the model has encoders text; use a config with a TextDecoder in model.decoders",
        ),
    ],
)
def test_what_cannot_be_priced_is_one_line(model, word, sizes, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        decoding(model, mesh(**sizes), asked(word))
