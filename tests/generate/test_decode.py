"""Texts written with a cache, against `transformers.generate` token for token, and against our own forward without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from cases import image_config
from families import CASES
from handed import sizes_of
from parity import save, spread

import mmjax
from mmjax.core.errors import UserError
from mmjax.core.trees import map_with_path
from mmjax.generate import Rules, decode, settings_of
from mmjax.generate.reading import prefill
from mmjax.models.forward import BoundForward
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.rules import place

V, ENDS, PAD, NEW = 97, (2,), 0, 11
MASK = np.arange(9)[None] >= np.array([[0], [4], [7]])
IDS = np.where(MASK, np.random.default_rng(0).integers(3, V, MASK.shape), PAD).astype(np.int32)
TEXT = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {
    "gpt2": ("GPT2LMHeadModel", {**TEXT, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}),
    "llama": (
        "LlamaForCausalLM",
        {
            **TEXT,
            "max_position_embeddings": 64,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "tie_word_embeddings": False,
        },
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    @functools.cache
    def make(kind):
        name, sizes = SIZES[kind]
        cls = getattr(transformers, name)
        hf = spread(cls(cls.config_class(**sizes)))
        folder = tmp_path_factory.mktemp(kind)
        hf.save_pretrained(folder)
        return (hf, *mmjax.load(folder))

    return make


def ours(model, params, given=None, ids=IDS, mask=MASK, batch=None, decoder="caption", ends=ENDS):
    rules = Rules(settings_of({"max_new_tokens": NEW, **(given or {})}), ends, PAD)
    write = jax.jit(functools.partial(decode, model, decoder=decoder, rules=rules))
    return write(params, batch=batch or {}, ids_BT=jnp.asarray(ids), mask_BT=jnp.asarray(mask))


def theirs(hf, given=None, ids=IDS, mask=MASK, **inputs):
    """Each row alone, padded after its end."""
    rows = []
    for n in range(len(ids)):
        row = torch.tensor(ids[n][mask[n]])[None].long()
        own = {name: x[n : n + 1] for name, x in inputs.items()}
        out = hf.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=NEW, do_sample=False, **own, **(given or {}))
        new = out[0, row.shape[1] :].tolist()
        rows.append(new + [PAD] * (NEW - len(new)))
    return np.array(rows)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("given", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 4}])
def test_a_ragged_batch_is_written_as_transformers_writes_each_row(kind, given, made):
    hf, model, params = made(kind)
    np.testing.assert_array_equal(np.asarray(ours(model, params, given).ids), theirs(hf, given))


def test_a_text_ends_where_transformers_ends_it(made):
    """Every token that is often written made an end: rows end at different lengths."""
    hf, model, params = made("gpt2")
    plain = np.asarray(ours(model, params).ids)
    ends = (int(plain[0, 3]), int(plain[1, 6]))
    found = ours(model, params, ends=ends)
    np.testing.assert_array_equal(np.asarray(found.ids), theirs(hf, {"eos_token_id": list(ends)}))
    wanted = [next((i + 1 for i, token in enumerate(row) if token in ends), NEW) for row in plain.tolist()]
    assert np.asarray(found.lengths).tolist() == wanted and min(wanted) < NEW


def test_a_cache_changes_nothing_and_scores_are_likelihoods(made):
    """Teacher-forced on what was written, the forward without a cache finds each token likeliest, and as likely."""
    _, model, params = made("llama")
    found = ours(model, params)
    for n in range(len(IDS)):
        row = np.concatenate([IDS[n][MASK[n]], np.asarray(found.ids)[n]])[None]
        batch = {"text": jnp.asarray(row), "text_mask": jnp.ones(row.shape, bool)}
        logits = np.asarray(BoundForward(model, params, {}).decode("caption", batch), np.float64)[0, -NEW - 1 : -1]
        np.testing.assert_array_equal(logits.argmax(-1), np.asarray(found.ids)[n])
        likely = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).max(-1).sum()
        assert np.asarray(found.scores)[n] == pytest.approx(likely, rel=1e-5)


def test_a_row_alone_is_the_row_in_a_batch(made):
    _, model, params = made("gpt2")
    whole = np.asarray(ours(model, params).ids)
    for n in range(len(IDS)):
        alone = ours(model, params, ids=IDS[n : n + 1, MASK[n].argmax() :], mask=np.ones((1, MASK[n].sum()), bool))
        np.testing.assert_array_equal(np.asarray(alone.ids)[0], whole[n])


@pytest.mark.parametrize("mesh", [Mesh(data=1, fsdp=4, tensor=2), Mesh(data=8)])
def test_eight_devices_write_what_one_writes(mesh, made):
    _, model, params = made("llama")
    ids, mask = np.repeat(IDS, 8, 0)[:8], np.repeat(MASK, 8, 0)[:8]
    wanted = np.asarray(ours(model, params, ids=ids, mask=mask).ids)
    built = mesh.build()
    with jax.set_mesh(built):
        placed = map_with_path(lambda path, x: place(built, path, np.asarray(x)), params)
        found = ours(model, placed, ids=ids, mask=mask)
    np.testing.assert_array_equal(np.asarray(found.ids), wanted)


def test_what_is_drawn_depends_on_the_seed_and_on_nothing_else(made):
    _, model, params = made("gpt2")
    draw = {"do_sample": True, "top_k": 0}
    first, again, other = (np.asarray(ours(model, params, {**draw, "seed": seed}).ids) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_token": 3}, "max_new_token=3: generation has no such setting (did you mean 'max_new_tokens'?)"),
        ({"num_return_sequences": 2}, "at most 1 texts of a prompt without do_sample or more beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most 2 texts of a prompt from so many beams"),
        ({"early_stopping": "soon", "num_beams": 2}, "early_stopping='soon': use True, False or 'never'"),
        ({"stop_strings": [".", ""]}, "an empty string would end every text"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"bad_words_ids": [[]]}, "a run of no tokens"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, said):
    with pytest.raises(UserError) as caught:
        settings_of(given)
    assert said in str(caught.value)


ACROSS = ["BlipForConditionalGeneration", "BlipForQuestionAnswering", "LlavaForConditionalGeneration"]


WAYS = [{"length_penalty": p, "early_stopping": e} for p in (0.6, 2.0) for e in (False, True, "never")]
# Two of them; `test_beams.py` holds every way to search and to end against `transformers`, on texts alone.
LATE = [way for way in WAYS if (way["length_penalty"], way["early_stopping"]) not in ((0.6, "never"), (2.0, True))]
SEARCHED = [pytest.param(ACROSS[2], {"num_beams": 4, **way}, marks=pytest.mark.slow if way in LATE else ()) for way in WAYS]


@pytest.mark.parametrize(("name", "beams"), [*[(name, {"num_beams": n}) for name in ACROSS for n in (1, 4)], *SEARCHED])
def test_a_text_about_an_image_is_what_transformers_writes(name, beams, tmp_path):
    """Each row against `transformers` alone, whose padded batches of BLIP are not its single rows."""
    case, made = next((case, made) for case in CASES.values() for made in case.models if made.name == name)
    hf = spread(case.make(made.of(sizes_of(case))))
    if name.startswith("Blip"):  # reads the ids of its texts from its config, whatever `generate` is given
        hf.config.text_config.bos_token_id, hf.config.text_config.sep_token_id, hf.config.text_config.pad_token_id = 1, 3, PAD
        hf.decoder_start_token_id, hf.decoder_pad_token_id = 1, PAD
    model, params = mmjax.load(save(hf, tmp_path))
    (decoder,) = model.decoders
    rng, side = np.random.default_rng(2), image_config(hf.config).image_size
    image = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    batch, inputs = {"image": image}, {"pixel_values": torch.tensor(np.moveaxis(image, -1, 1).copy())}
    ids, mask = np.full((3, 1), 1, np.int32), np.ones((3, 1), bool)
    if name.startswith("Llava"):
        encoder, place = model.encoders["image"], model.decoders[decoder].place
        tokens = image.shape[1] // encoder.patch[0] * (image.shape[2] // encoder.patch[1])
        words = [rng.integers(4, 59, n) for n in (3, 1, 6)]
        rows = [np.concatenate([[1], [place] * tokens, own]) for own in words]
        length = max(map(len, rows))
        mask = np.arange(length)[None] >= np.array([[length - len(row)] for row in rows])
        ids = np.stack([np.pad(row, (length - len(row), 0)) for row in rows]).astype(np.int32)
    if name == "BlipForQuestionAnswering":
        text = rng.integers(4, 59, (3, 5)).astype(np.int32)
        batch |= {"text": text, "text_mask": np.ones(text.shape, bool)}
    found = np.asarray(ours(model, params, beams, ids, mask, batch, decoder, (3,)).ids)
    for n in range(3):
        own = {key: x[n : n + 1] for key, x in inputs.items()}
        if "text" in batch:
            own |= {"input_ids": torch.tensor(batch["text"][n : n + 1]).long()}
        elif mask.shape[1] > 1:
            own |= {"input_ids": torch.tensor(ids[n][mask[n]])[None].long()}
        ends = {} if name.startswith("Blip") else {"eos_token_id": 3, "pad_token_id": PAD}
        out = hf.generate(**own, **ends, max_new_tokens=NEW, do_sample=False, **beams)[0].tolist()
        new = out[len(own["input_ids"][0]) :] if name.startswith("Llava") else out[1:]
        new = new[: new.index(3) + 1] if 3 in new else new  # beams are filled up with an end where padding is 0
        assert found[n].tolist() == (new + [PAD] * NEW)[:NEW]


def forced(model, params, ids, decoder="caption", start=3):
    """[B, T - start + 1, V]: the logits after each token from `start` on, read with a cache."""
    B, T = ids.shape
    rules, mask = Rules(settings_of({"max_new_tokens": T - start + 1}), ENDS, PAD), jnp.ones((B, start), bool)
    new = T - start + 1
    logits, cache, reader = prefill(model, params, decoder, {}, jnp.asarray(ids[:, :start]), mask, new, 1)
    found, written = [logits], rules.begun(jnp.asarray(ids[:, :start]), mask)

    @jax.jit
    def step(written, cache, token_B):
        written = rules.appended(written, token_B)
        logits, new = reader.step(written, cache)
        return logits, written, reader.keep(cache, new, written.slot - 1, jnp.asarray(False))

    for t in range(start, T):
        logits, written, cache = step(written, cache, jnp.asarray(ids[:, t]))
        found.append(logits)
    return np.stack([np.asarray(x, np.float64) for x in found], axis=1)


@pytest.mark.parametrize("kind", SIZES)
def test_bfloat16_stays_within_a_band_of_float32(kind, made):
    """Teacher-forced logits, read with a cache: within 1% of their own spread as a root mean square, and 6% at most
    anywhere; so is what bfloat16 finds without a cache."""
    _, model, params = made(kind)
    narrow, ids = model.copy(dtype="bfloat16"), np.random.default_rng(4).integers(3, V, (4, 24)).astype(np.int32)
    batch = {"text": jnp.asarray(ids), "text_mask": jnp.ones(ids.shape, bool)}
    exact, cached = forced(model, params, ids), forced(narrow, params, ids)
    whole = np.asarray(BoundForward(narrow, params, {}).decode("caption", batch), np.float64)[:, 2:]
    for near in (cached, whole):
        off = (near - exact) / exact.std()
        assert 1e-4 < np.sqrt((off**2).mean()) < 0.01 and np.abs(off).max() < 0.06
