"""Prompts beside the same tokens written into the input by hand: texts, images, what reads them, and what writes after them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.adapt import LoRA, Prompt, adapted, base_of, merged, trained_patterns
from mmjax.core.errors import UserError
from mmjax.core.trees import leaves_by_path, nested
from mmjax.core.types import Tokens
from mmjax.generate import Rules, decode, settings_of
from mmjax.models import Multimodal
from mmjax.models.decoders import PixelDecoder, TextDecoder
from mmjax.models.encoders import TextTransformer, ViT
from mmjax.models.forward import BoundForward
from mmjax.models.fusion import Cross, Dual, SingleStream
from mmjax.models.heads import Classifier, TokenClassifier
from mmjax.models.multimodal import init_params
from mmjax.models.parts import rejoin, split
from mmjax.nn.stack import Stack
from mmjax.objectives import MaskedImage, MaskedLM

V, LENGTH, WORDS = 31, 14, (7, 3, 19)  # the words that stand for virtual tokens in the texts written by hand
SIZE = {"width": 16, "depth": 2, "heads": 2}
TEXT = {"vocab_size": V, "max_length": LENGTH, **SIZE}
LENGTHS = np.array([9, 4, 6])
MASK = np.arange(9)[None] < LENGTHS[:, None]
IDS = np.where(MASK, np.random.default_rng(0).integers(4, V, MASK.shape), 0).astype(np.int32)
PIXELS = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)
SEGMENTS = np.where(np.arange(9)[None] < 3, 0, MASK).astype(np.int32)

TOWERS = {
    "clip": (1, {"causal": True, "activation": "quick_gelu"}),
    "bert": (0, {"norm_placement": "post", "segments": 2, "embed_norm": True, "position_offset": 2}),
    "rotary": (0, {"positions": "rotary", "causal": True, "kv_heads": 1, "norm": "rmsnorm"}),
    "sincos": (2, {"positions": "sincos", "embed_width": 8}),
}


def text_model(kind):
    return Multimodal(
        encoders={"text": TextTransformer(**TEXT, **TOWERS[kind][1])},
        fusions={"dual": Dual(width=16, pool={"text": "last"}, project=("text",))},
        heads={
            "cls": Classifier(classes=3, input="text", pool="cls"),
            "mean": Classifier(classes=3, input="text", pool="mean"),
            "attention": Classifier(classes=3, input="text", pool="attention", heads=2),
            "tags": TokenClassifier(classes=4, input="text"),
        },
    )


def by_hand(after, ids=IDS, mask=MASK, segments=SEGMENTS):
    """The batch with the words where the virtual tokens stand."""

    def among(x, own):
        return np.concatenate([x[:, :after], np.broadcast_to(own, (len(x), len(WORDS))), x[:, after:]], axis=1).astype(x.dtype)

    return batch_of(among(ids, WORDS), among(mask, True), among(segments, 0))


def batch_of(ids=IDS, mask=MASK, segments=SEGMENTS):
    return {"text": jnp.asarray(ids), "text_mask": jnp.asarray(mask), "text_segments": jnp.asarray(segments)}


def prompted(model, path="encoders_text/words/table", after=0, key=0):
    """Parameters before and with a prompt that begins as the rows of those words."""
    params = init_params(model, jax.random.key(key))
    return params, adapted(model, params, {path: Prompt(n=len(WORDS), after=after, ids=WORDS)}, jax.random.key(1))


def close(ours, theirs, atol=2e-6):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=atol)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_text_with_a_prompt_is_the_text_with_those_words(kind):
    model, after = text_model(kind), TOWERS[kind][0]
    params, own = prompted(model, after=after)
    if not model.encoders["text"].segments:
        batches = [{k: x for k, x in b.items() if k != "text_segments"} for b in (batch_of(), by_hand(after))]
    else:
        batches = [batch_of(), by_hand(after)]
    ours, theirs = BoundForward(model, own, batches[0]), BoundForward(model, params, batches[1])
    given, wanted = ours.encode("text"), theirs.encode("text")
    close(given.embeddings, wanted.embeddings)
    for name in ("mask", "positions", "segments"):
        if getattr(wanted, name) is not None:
            np.testing.assert_array_equal(getattr(given, name), getattr(wanted, name))
    close(ours.embed("text"), theirs.embed("text"))
    for head in ("cls", "attention"):
        close(ours.head(head), theirs.head(head))
    real = np.delete(np.arange(12), np.arange(after, after + 3))
    close(ours.head("tags"), theirs.head("tags")[:, real])
    without = Tokens(wanted.embeddings[:, real], wanted.mask[:, real])
    close(ours.head("mean"), theirs.head("mean", without))


def test_coop_reads_context_after_the_first_token_and_pools_the_end():
    """Zhou 2022, section 3.2: [begin] v_1 ... v_M class name . [end], made of vectors instead of ids."""
    model = text_model("clip")
    params, own = prompted(model, after=1)
    rng = np.random.default_rng(5)
    context = jnp.asarray(rng.normal(size=(3, 16)), jnp.float32)
    own["encoders_text"]["words"]["prompt_tokens"] = context
    tower, p = model.encoders["text"], params["encoders_text"]
    words = p["words"]["table"][IDS]
    x_BTD = jnp.concatenate([words[:, :1], jnp.broadcast_to(context[None], (3, 3, 16)), words[:, 1:]], axis=1)
    x_BTD = x_BTD + p["position"]["table"][None, :12]
    stack = Stack(**SIZE, activation="quick_gelu", causal=True)
    y_BTD = stack.apply({"params": p["stack"]}, x_BTD, jnp.asarray(by_hand(1)["text_mask"]))
    end_BD = jnp.stack([y_BTD[n, length + 3 - 1] for n, length in enumerate(LENGTHS)])
    wanted = end_BD @ params["fusions_dual"]["project_text"]["kernel"]
    wanted = wanted / jnp.linalg.norm(wanted, axis=-1, keepdims=True)
    assert tower.max_length == 14
    close(BoundForward(model, own, batch_of()).embed("text"), wanted)


def test_a_text_has_to_leave_room_for_the_prompt():
    model = text_model("clip")
    _, own = prompted(model, after=1)
    ids = np.ones((2, 12), np.int32)
    with pytest.raises(UserError, match=r"a text of 12 tokens and 3 virtual ones .* max_length=14: use texts of at most 11"):
        BoundForward(model, own, {"text": ids}).encode("text")
    with pytest.raises(UserError, match=r"Prompt.after=2: an input of 1 tokens has not so many"):
        BoundForward(text_model("sincos"), prompted(text_model("sincos"), after=2)[1], {"text": ids[:, :1]}).encode("text")


def image_model(**changes):
    vit = ViT(image_size=(8, 8), patch=(4, 4), cls_token=True, extra_tokens=1, **SIZE, **changes)
    heads = {name: Classifier(classes=3, input="image", pool=name, heads=2) for name in ("cls", "mean", "rest", "attention")}
    return Multimodal(encoders={"image": vit}, heads=heads)


@pytest.mark.parametrize("changes", [{}, {"embed_norm": True, "positions": "sincos"}], ids=str)
def test_an_image_with_a_prompt_is_read_as_vpt_reads_it(changes):
    """Jia 2022, eq. 4: [CLS], the prompt without positions, the patches; read by the layers as they are."""
    model = image_model(**changes)
    params = init_params(model, jax.random.key(0))
    own = adapted(model, params, {"encoders_image/*": Prompt(n=3, deviation=1.0)}, jax.random.key(1))
    prompt = own["encoders_image"]["project_patches"]["prompt_tokens"]
    p, bare = params["encoders_image"], model.encoders["image"].copy(depth=0, embed_norm=False)
    x_BTD = bare.apply({"params": p}, jnp.asarray(PIXELS)).embeddings
    x_BTD = jnp.concatenate([x_BTD[:, :2], jnp.broadcast_to(prompt[None], (3, 3, 16)), x_BTD[:, 2:]], axis=1)
    if changes:
        x_BTD = (x_BTD - x_BTD.mean(-1, keepdims=True)) / jnp.sqrt(x_BTD.var(-1, keepdims=True) + 1e-6)
    wanted = Stack(**SIZE).apply({"params": p["stack"]}, x_BTD, jnp.ones((3, 9), bool))
    forward, plain = BoundForward(model, own, {"image": PIXELS}), BoundForward(model, params, {"image": PIXELS})
    given = forward.encode("image")
    close(given.embeddings, wanted, 2e-5)
    assert given.virtual == (2, 3, 4) and given.grid == (2, 2, 2) and given.mask.shape == (3, 9)
    close(given.raster("test"), wanted[:, 5:].reshape(3, 2, 2, 16), 2e-5)
    real = Tokens(jnp.delete(wanted, np.array([2, 3, 4]), axis=1), jnp.ones((3, 6), bool))
    for head in ("cls", "mean", "rest"):
        close(forward.head(head), plain.head(head, real), 2e-5)
    close(forward.head("attention"), plain.head("attention", Tokens(wanted, jnp.ones((3, 9), bool))), 2e-5)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_every_layer_of_an_image_puts_its_own_prompt_where_the_last_ones_stood(placement):
    """Jia 2022, eq. 5: of what a layer gave [CLS] and the patches go on, between them the next layer's own tokens."""
    model = image_model(norm_placement=placement, take_layer=2)
    params = init_params(model, jax.random.key(0))
    spec = Prompt(n=3, deviation=1.0, deep=True)
    own = adapted(model, params, {"encoders_image/*": spec}, jax.random.key(1))
    rows = own["encoders_image"]["stack"]["layers"]["attention"]["q"]["prompt_layers"]
    assert rows.shape == (2, 3, 16) and (rows[0] != rows[1]).all()
    p = params["encoders_image"]
    x_BTD = model.encoders["image"].copy(depth=0, take_layer=None).apply({"params": p}, jnp.asarray(PIXELS)).embeddings
    for n in range(2):
        between = jnp.broadcast_to(rows[n][None], (3, 3, 16))
        x_BTD = jnp.concatenate([x_BTD[:, :2], between, x_BTD[:, 2:]], axis=1)
        layer = {"layers": jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], p["stack"]["layers"])}
        alone = Stack(**{**SIZE, "depth": 1}, norm_placement=placement, final_norm=False)
        whole = alone.apply({"params": layer}, x_BTD, jnp.ones((3, 9), bool))
        x_BTD = jnp.delete(whole, np.array([2, 3, 4]), axis=1)
    given = BoundForward(model, own, {"image": PIXELS}).encode("image")
    close(given.embeddings, whole, 2e-5)
    assert given.virtual == (2, 3, 4)
    names = trained_patterns(model, {"encoders_image/*": spec})
    assert names == ("encoders_image/stack/layers/attention/q/prompt_layers",)
    with pytest.raises(UserError, match="what a prompt adds has no place"):
        merged(model, own)


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"encoders_image/stack/*": Prompt(deep=True)}, r"gives Prompt.deep a part of encoders_image.*'encoders_image/\*'"),
        ({"encoders_image/project_patches/*": Prompt(deep=True)}, "gives Prompt.deep a part of encoders_image"),
        ({"encoders_image/*[1:]": Prompt(deep=True)}, "gives Prompt.deep a part of"),
    ],
)
def test_a_deep_prompt_is_of_a_whole_image_tower(adapt, said):
    with pytest.raises(UserError, match=said):
        trained_patterns(image_model(), adapt)
    with pytest.raises(UserError, match=r"Prompt.deep of a text \(encoders_text/words/table\)"):
        trained_patterns(text_model("clip"), {"encoders_text/*": Prompt(deep=True)})


def test_a_masked_autoencoder_paints_what_a_prompted_encoder_saw():
    pixels = PixelDecoder(image_size=(8, 8), patch=(4, 4), firsts=2, **SIZE)
    model = image_model().copy(decoders={"pixels": pixels}, heads={})
    params = init_params(model, jax.random.key(0))
    own = adapted(model, params, {"encoders_image/*": Prompt(n=3, deviation=1.0)}, jax.random.key(1))
    batch = {"image": jnp.asarray(PIXELS), "index": jnp.arange(3), "valid": jnp.ones(3, bool)}
    noise = jnp.asarray(np.random.default_rng(2).uniform(size=(3, 4)), jnp.float32)
    objective = MaskedImage(patch=(4, 4), mask_ratio=0.5)
    forward = BoundForward(model, own, batch)
    _, painted = objective.paint(forward, noise)
    keep, _ = objective.choose(noise)
    seen = forward.encode("image", {"image_keep": keep}, key="again")
    assert seen.virtual == (2, 3, 4) and seen.mask.shape == (3, 7)
    again = BoundForward(model, params, batch).decode("pixels", {"image": batch["image"]}, {"image": seen.real()})
    close(painted, again)


FUSIONS = {
    "cross": Cross(**SIZE),
    "both": Cross(both=True, **SIZE),
    "single": SingleStream(**SIZE),
    "single with cls": SingleStream(cls_token=True, **SIZE),
}


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_fusion_passes_virtual_tokens_on_and_the_masked_lm_reads_the_real_ones(kind):
    model = Multimodal(
        encoders={"text": TextTransformer(**TEXT), "image": ViT(image_size=(8, 8), patch=(4, 4), **SIZE)},
        fusions={"fused": FUSIONS[kind]},
        heads={"masked_lm": TokenClassifier(classes=V, input="fused")},
    )
    params, own = prompted(model, after=1)
    rest = {"image": jnp.asarray(PIXELS), "index": jnp.arange(3), "valid": jnp.ones(3, bool)}
    batch, hand = ({k: x for k, x in b.items() if k != "text_segments"} | rest for b in (batch_of(), by_hand(1)))
    ours, theirs = (BoundForward(model, p, b).tokens("fused") for p, b in ((own, batch), (params, hand)))
    close(ours.embeddings, theirs.embeddings)
    first = int("cls" in kind)
    assert ours.virtual == tuple(first + n for n in (1, 2, 3)) and theirs.virtual == ()
    objective = MaskedLM(vocab_size=V, mask_id=2, special_ids=(0, 1), mask_probability=0.5)
    shown, chosen = objective.corrupt(batch["text"], batch["text_mask"], batch["index"], jax.random.key(3))
    wanted = BoundForward(model, params, hand | {"text": jnp.asarray(by_hand(1, np.asarray(shown))["text"])})
    logits = np.asarray(wanted.head("masked_lm"), np.float64)[:, first : first + 12][:, np.delete(np.arange(12), [1, 2, 3])]
    likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(likely, IDS[..., None].astype(int), -1)[..., 0][np.asarray(chosen)].sum()
    for limit in (None, 9):
        objective = MaskedLM(vocab_size=V, mask_id=2, special_ids=(0, 1), mask_probability=0.5, max_predictions=limit)
        found = objective(BoundForward(model, own, batch), batch, jax.random.key(3))
        assert float(found.sum) == pytest.approx(loss, rel=1e-5)


def test_several_inputs_of_an_example_have_a_prompt_each():
    tokens = Tokens(jnp.zeros((4, 5, 2)), jnp.ones((4, 5), bool), virtual=(1, 2))
    joined = rejoin(tokens, 2)
    assert joined.virtual == (1, 2, 6, 7) and joined.real().mask.shape == (2, 6)
    assert split(joined, 2).virtual == (1, 2)


def test_what_is_added_is_added_to_the_input_alone():
    model = text_model("clip")
    params, own = prompted(model, after=1)
    added = np.random.default_rng(4).normal(size=(3, 9, 16)).astype(np.float32)
    whole = np.concatenate([added[:, :1], np.zeros((3, 3, 16), np.float32), added[:, 1:]], axis=1)
    batch, hand = ({k: x for k, x in b.items() if k != "text_segments"} for b in (batch_of(), by_hand(1)))
    ours = BoundForward(model, own, batch | {"text_added": added}).embed("text")
    close(ours, BoundForward(model, params, hand | {"text_added": whole}).embed("text"))
    with pytest.raises(UserError, match=r"added to embeddings \(3, 9, 16\) has their shape, found \(3, 12, 16\)"):
        BoundForward(model, own, batch | {"text_added": whole}).embed("text")


DECODERS = {
    "gpt2": {},
    "llama": {"positions": "rotary", "kv_heads": 1, "norm": "rmsnorm", "tied": False},
    "captioner": {"context": ("image",)},
}


@functools.cache
def writer(kind):
    own = {"context": (), **DECODERS[kind]}
    model = Multimodal(
        encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), **SIZE)},
        decoders={"lm": TextDecoder(vocab_size=V, max_length=24, **SIZE, **own)},
    )
    ours = prompted(model, "decoders_lm/words/table")[1]
    loud = {
        p: 6 * x if p.endswith("kernel") else x for p, x in leaves_by_path(ours).items()
    }  # so that no two words are as likely
    ours = nested(loud)
    return model, base_of(ours), ours, ({"image": jnp.asarray(PIXELS)} if own["context"] else {})


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_gives_the_logits_of_the_real_tokens(kind):
    model, params, own, images = writer(kind)
    batch, hand = ({k: x for k, x in b.items() if k != "text_segments"} for b in (batch_of(), by_hand(0)))

    def logits(p, text):
        forward = BoundForward(model, p, images)
        return forward.decode("lm", text, {"image": forward.tokens("image")} if images else None)

    ours, theirs = np.asarray(logits(own, batch)), np.asarray(logits(params, hand))
    np.testing.assert_allclose(ours[MASK], theirs[:, 3:][MASK], atol=2e-4)


@pytest.mark.parametrize("given", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("kind", DECODERS)
def test_what_is_written_after_a_prompt_is_what_is_written_after_those_words(kind, given):
    """Of each row alone, since the words written by hand belong before its padding."""
    model, params, own, images = writer(kind)
    rules = Rules(settings_of({"max_new_tokens": 6, **given}), (2,), 0)
    write = jax.jit(functools.partial(decode, model, decoder="lm", rules=rules))
    ids, mask = IDS[:, ::-1], MASK[:, ::-1]  # padded on the left
    found = write(own, batch=images, ids_BT=jnp.asarray(ids), mask_BT=jnp.asarray(mask))
    each = given.get("num_return_sequences", 1)
    for n, length in enumerate(LENGTHS):
        row = np.concatenate([WORDS, ids[n, 9 - length :]])[None].astype(np.int32)
        image = {k: x[n : n + 1] for k, x in images.items()}
        wanted = write(params, batch=image, ids_BT=jnp.asarray(row), mask_BT=jnp.ones(row.shape, bool))
        np.testing.assert_array_equal(found.ids[n * each : (n + 1) * each], wanted.ids)
        np.testing.assert_allclose(found.scores[n * each : (n + 1) * each], wanted.scores, rtol=1e-4)


def test_what_a_prompt_begins_with():
    model = Multimodal(encoders={"text": TextTransformer(**TEXT), "image": image_model().encoders["image"]})
    params = init_params(model, jax.random.key(0))
    table = np.asarray(params["encoders_text"]["words"]["table"])

    def begun(pattern, **fields):
        own = adapted(model, params, {pattern: Prompt(**fields)}, jax.random.key(1))
        room = "encoders_text/words" if "text" in pattern else "encoders_image/project_patches"
        return np.asarray(leaves_by_path(own)[f"{room}/prompt_tokens"])

    np.testing.assert_array_equal(begun("encoders_text/*", n=2, ids=(4, 9)), table[[4, 9]])
    drawn = begun("encoders_text/*", n=8, init="words")
    assert all(any((row == own).all() for own in table) for row in drawn) and len(np.unique(drawn, axis=0)) > 3
    assert begun("encoders_text/*", n=400, deviation=0.5).std() == pytest.approx(0.5, rel=0.03)
    bound = (6 / (48 + 16)) ** 0.5
    uniform = begun("encoders_image/*", n=400, init="uniform")
    assert 0.99 * bound < np.abs(uniform).max() <= bound and uniform.std() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert trained_patterns(model, {"encoders_*": Prompt()}) == (
        "encoders_image/project_patches/prompt_tokens",
        "encoders_text/words/prompt_tokens",
    )


def test_a_prompt_and_another_method_lie_beside_one_kernel():
    model = image_model()
    params = init_params(model, jax.random.key(0))
    adapt = {"all-linear": LoRA(r=2), "encoders_image/*": Prompt(n=2)}
    own = adapted(model, params, adapt, jax.random.key(1))["encoders_image"]["project_patches"]
    assert {"prompt_tokens", "lora_a", "lora_b", "lora_scale"} <= own.keys()
    alone = {"encoders_image/*": Prompt(n=2)}  # and its kernel may be trained as a whole, which LoRA's may not
    assert trained_patterns(model, alone, ("*/project_patches/kernel",)) == ("encoders_image/project_patches/prompt_tokens",)


@pytest.mark.parametrize(
    ("adapt", "said"),
    [
        ({"encoders_texts/*": Prompt()}, "'encoders_texts/*' matches no kernel that Prompt could be given (did you mean"),
        ({"encoders_text/stack/*": Prompt()}, "(did you mean 'encoders_text/words/table'?); one is 'decoders_lm/words/table'"),
        ({"all-linear": Prompt()}, "'all-linear' names kernels, which Prompt does not change: name a tower"),
        ({"encoders_image/*": Prompt(after=1)}, "after, ids and init='words' are of texts"),
        ({"encoders_image/*": Prompt(init="words")}, "after, ids and init='words' are of texts"),
        ({"encoders_text/*": Prompt(init="uniform")}, "init='uniform' is of images"),
        (
            {"decoders_lm/*": Prompt(after=1)},
            "Prompt.after=1 of decoders_lm/words/table: what writes texts takes a prompt before",
        ),
        ({"encoders_text/*": Prompt(n=1, ids=(31,))}, "Prompt.ids has 31, and encoders_text/words/table has the rows 0 to 30"),
        ({"encoders_text/*": Prompt(), "*/words/table": Prompt(n=2)}, "a prompt takes one method"),
    ],
)
def test_what_cannot_have_a_prompt_is_one_line(adapt, said):
    model = Multimodal(
        encoders={"text": TextTransformer(**TEXT), "image": image_model().encoders["image"]},
        decoders={"lm": TextDecoder(**TEXT, context=())},
    )
    with pytest.raises(UserError) as error:
        trained_patterns(model, adapt)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Prompt(n=0), "Prompt.n=0"),
        (lambda: Prompt(after=-1), "Prompt.after=-1"),
        (lambda: Prompt(init="text"), "Prompt.init='text': use one of normal, words, uniform"),
        (lambda: Prompt(n=3, ids=(1, 2)), "Prompt.ids are 2 and n=3: give as many"),
        (lambda: Prompt(deviation=-1.0), "Prompt.deviation=-1.0"),
    ],
)
def test_fields_out_of_range_are_one_line(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_rotary_images_take_none_and_nothing_is_merged():
    model = Multimodal(encoders={"image": ViT(image_size=(8, 8), patch=(4, 4), positions="rotary", **SIZE)})
    own = adapted(model, init_params(model, jax.random.key(0)), {"encoders_image/*": Prompt()}, jax.random.key(1))
    with pytest.raises(UserError, match="positions='rotary': a prompt's tokens stand nowhere in an image"):
        BoundForward(model, own, {"image": PIXELS}).encode("image")
    with pytest.raises(UserError, match="project_patches/prompt_tokens: what a prompt adds has no place in"):
        merged(model, own)
