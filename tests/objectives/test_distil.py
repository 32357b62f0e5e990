"""The four objectives that ask a teacher, against PyTorch and against what they say of themselves."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmjax.core.errors import UserError
from mmjax.core.types import Tokens
from mmjax.objectives import OBJECTIVES, DistilLogits, DistilText, DistilTokens, DistilTowers

RNG = np.random.default_rng(0)
B, T, C, D, E = 6, 5, 7, 4, 3
VALID = np.array([1, 1, 1, 1, 1, 0], bool)
MASK = np.arange(T)[None] < np.array([5, 3, 4, 2, 5, 5])[:, None]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


class Given:
    """A forward of what it is given, and its teacher another such."""

    train = True

    def __init__(self, heads, tokens=None, embeds=None, scale=1.0, words=None, other=None):
        self.heads, self.tokens_, self.embeds, self.scale, self.words, self.other = heads, tokens, embeds, scale, words, other
        self.batch = {"text": jnp.ones((B, T), jnp.int32), "text_mask": jnp.asarray(MASK), "valid": jnp.asarray(VALID)}

    def head(self, name):
        return self.heads[name]

    def tokens(self, name):
        return self.tokens_

    def embed(self, modality, fusion):
        return self.embeds[modality]

    def scalar(self, fusion, name):
        return jnp.float32(self.scale)

    def decode(self, name, inputs, context, key):
        return self.words

    def spec(self, path):
        return types.SimpleNamespace(input="text", writes="text", context=())

    def teacher(self, name):
        return self.other


def run(objective, own, theirs):
    own.other = theirs
    return objective(own, own.batch, jax.random.key(0))


def torch_kl(own, theirs, temperature, kept):
    p, q = (torch.tensor(np.asarray(x)) / temperature for x in (theirs, own))
    losses = (
        torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        * temperature**2
    )
    return losses[torch.tensor(kept)].sum().item()


def test_the_table_names_them():
    assert [OBJECTIVES[f"distil_{n}"] for n in ("logits", "text", "tokens", "towers")] == [
        DistilLogits, DistilText, DistilTokens, DistilTowers
    ]  # fmt: skip


def test_logits_are_torchs_divergence_and_no_label_is_read():
    own, theirs = draw(B, C), draw(B, C)
    loss = run(DistilLogits(temperature=3.0), Given({"classes": own}), Given({"classes": theirs}))
    np.testing.assert_allclose(loss.sum, torch_kl(own, theirs, 3.0, VALID), rtol=1e-5)
    assert loss.count == 5
    same = run(DistilLogits(), Given({"classes": own}), Given({"classes": own}))
    assert abs(same.sum) < 1e-6 and same.metrics["agreement"][0] == 5


def test_logits_of_tokens_leave_padding_out():
    own, theirs = draw(B, T, C), draw(B, T, C)
    tokens = Tokens(draw(B, T, D), jnp.asarray(MASK))
    loss = run(DistilLogits(), Given({"classes": own}, tokens), Given({"classes": theirs}))
    kept = MASK & VALID[:, None]
    np.testing.assert_allclose(loss.sum, torch_kl(own, theirs, 2.0, kept), rtol=1e-5)
    assert float(loss.count) == kept.sum()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_tokens_are_torchs_distance(kind):
    own, theirs = draw(B, T, D), draw(B, T, D)
    tokens = Tokens(draw(B, T, 2), jnp.asarray(MASK))
    loss = run(DistilTokens(loss=kind), Given({"project": own}, tokens), Given({}, Tokens(theirs, jnp.ones((B, T), bool))))
    a, b = (torch.tensor(np.asarray(x)) for x in (own, theirs))
    apart = (
        torch.nn.functional.mse_loss(a, b, reduction="none").mean(-1)
        if kind == "mse"
        else 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
    )
    np.testing.assert_allclose(loss.sum, apart[torch.tensor(MASK & VALID[:, None])].sum(), rtol=1e-5)


def test_tokens_of_another_layout_are_refused_by_both_counts():
    tokens = Tokens(draw(B, T, 2), jnp.asarray(MASK))
    with pytest.raises(UserError, match=r"heads\.project reads 5 tokens and teachers\.teacher gives 4"):
        run(DistilTokens(), Given({"project": draw(B, T, D)}, tokens), Given({}, Tokens(draw(B, 4, D), jnp.ones((B, 4), bool))))


def test_towers_are_open_clips_distillation_of_the_valid_rows():
    """`DistillClipLoss`: minus the teacher's softmax times the student's log softmax, each way, halved; written anew."""
    own = {m: jnp.asarray(unit(draw(B, E))) for m in ("image", "text")}
    theirs = {m: jnp.asarray(unit(draw(B, D))) for m in ("image", "text")}
    loss = run(DistilTowers(), Given({}, embeds=own, scale=8.0), Given({}, embeds=theirs, scale=14.0))
    student, teacher = (
        scale * torch.tensor(np.asarray(x["image"])[VALID]) @ torch.tensor(np.asarray(x["text"])[VALID]).T
        for x, scale in ((own, 8.0), (theirs, 14.0))
    )
    both = [-(t.softmax(1) * s.log_softmax(1)).sum(1) for s, t in ((student, teacher), (student.T, teacher.T))]
    np.testing.assert_allclose(loss.sum, ((both[0] + both[1]) / 2).sum(), rtol=1e-5)
    assert loss.count == 5
    with pytest.raises(UserError, match=r"features: the student's space is 3 wide and that of teachers\.teacher 4"):
        run(DistilTowers(features=1.0), Given({}, embeds=own), Given({}, embeds=theirs))
    near = run(DistilTowers(features=2.0), Given({}, embeds=own), Given({}, embeds={m: -x for m, x in own.items()}))
    np.testing.assert_allclose(near.metrics["features"][0], 4 * 5, rtol=1e-5)


def test_a_head_of_one_logit_has_nothing_to_say():
    with pytest.raises(UserError, match=r"model\.heads\.classes\.classes=1: one number is no distribution"):
        run(DistilLogits(), Given({"classes": draw(B, 1)}), Given({"classes": draw(B, 1)}))


def test_text_is_held_where_a_word_is_predicted():
    own, theirs = draw(B, T, C), draw(B, T, C)
    loss = run(DistilText(), Given({}, words=own), Given({}, words=theirs))
    kept = np.zeros_like(MASK)
    kept[:, :-1] = MASK[:, 1:] & VALID[:, None]
    np.testing.assert_allclose(loss.sum, torch_kl(own, theirs, 1.0, kept), rtol=1e-5)
    with pytest.raises(UserError, match=r"decoders\.caption has 7 words, and teachers\.teacher has 8"):
        run(DistilText(), Given({}, words=own), Given({}, words=draw(B, T, 8)))


@pytest.mark.parametrize("wrong", [
    lambda: DistilLogits(temperature=0.0), lambda: DistilText(temperature=-1.0), lambda: DistilTokens(loss="l1"),
    lambda: DistilTowers(features=-1.0), lambda: DistilTowers(teacher_modalities=("image",)),
])  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="distil_"):
        wrong()
