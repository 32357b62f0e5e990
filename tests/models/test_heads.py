import jax
import jax.numpy as jnp
import numpy as np
from pytorch import torch

from mmjax.core.types import Tokens
from mmjax.models.heads import Classifier, DistilledClassifier, OrdinalClassifier, TokenClassifier

DRAW = np.random.default_rng(0).normal
X = DRAW(size=(2, 3, 8)).astype(np.float32)
TOKENS = Tokens(jnp.asarray(X), jnp.array([[1, 1, 0], [1, 1, 1]], bool))
TABLE = DRAW(size=(11, 8)).astype(np.float32)


def drawn(head, *args):
    shapes = jax.eval_shape(head.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(lambda x: DRAW(size=x.shape).astype(np.float32) * 0.3, shapes)


def linear(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def test_a_classifier_pools_and_projects():
    head = Classifier(classes=5, pool="cls", hidden_width=6)
    params = drawn(head, TOKENS)
    expected = linear(np.tanh(linear(X[:, 0], params["project"])), params["logits"])
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS), expected, rtol=1e-5, atol=1e-6)


def test_a_classifier_without_a_hidden_layer():
    head = Classifier(classes=5)
    params = drawn(head, TOKENS)
    pooled = np.stack([X[0, :2].mean(axis=0), X[1].mean(axis=0)])
    assert list(params) == ["logits"]
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS), linear(pooled, params["logits"]), rtol=1e-5, atol=1e-6)


def test_a_distilled_classifier_is_the_mean_of_two():
    head = DistilledClassifier(classes=5)
    params = drawn(head, TOKENS)
    expected = (linear(X[:, 0], params["logits"]) + linear(X[:, 1], params["second_logits"])) / 2
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(DistilledClassifier(classes=0).apply({}, TOKENS), X[:, :2].mean(axis=1), rtol=1e-5, atol=1e-6)


def test_an_ordinal_classifier_is_one_score_over_thresholds():
    """So its logits are apart by as much for every example: answers that agree for one agree for all."""
    head = OrdinalClassifier(classes=5)
    params = drawn(head, TOKENS)
    assert {path: x.shape for path, x in params.items() if path != "logits"} == {"thresholds": (4,)}
    assert {name: x.shape for name, x in params["logits"].items()} == {"kernel": (8, 1)}
    pooled = np.stack([X[0, :2].mean(axis=0), X[1].mean(axis=0)])
    found = head.apply({"params": params}, TOKENS)
    np.testing.assert_allclose(found, pooled @ params["logits"]["kernel"] + params["thresholds"], rtol=1e-5, atol=1e-6)


def test_a_tied_token_head_is_berts():
    head = TokenClassifier(classes=11, tied_to="text", norm_epsilon=1e-5)
    params = drawn(head, TOKENS, TABLE)
    h = torch.nn.functional.gelu(torch.from_numpy(linear(X, params["project"])))
    h = torch.nn.functional.layer_norm(h, (8,), *(torch.from_numpy(params["norm"][n]) for n in ("scale", "bias")), 1e-5)
    logits = head.apply({"params": params}, TOKENS, jnp.asarray(TABLE))
    np.testing.assert_allclose(logits, h.numpy() @ TABLE.T + params["tied_bias"], rtol=1e-4, atol=1e-5)


def test_a_tied_head_works_at_the_tables_width():
    shapes = jax.eval_shape(TokenClassifier(classes=11).init, jax.random.key(0), TOKENS, TABLE[:, :4])["params"]
    assert shapes["project"]["kernel"].shape == (8, 4)


def test_a_free_token_head_without_a_transform():
    head = TokenClassifier(classes=5, transform=False)
    params = drawn(head, TOKENS)
    assert list(params) == ["logits"]
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS), linear(X, params["logits"]), rtol=1e-5, atol=1e-6)


def test_logits_are_float32():
    halves = Tokens(TOKENS.embeddings.astype(jnp.bfloat16), TOKENS.mask)
    heads = (
        Classifier(hidden_width=4),
        DistilledClassifier(classes=5),
        TokenClassifier(classes=5),
        OrdinalClassifier(classes=5),
    )
    for head in (*heads, TokenClassifier(classes=11, tied_to="text")):
        table = (jnp.asarray(TABLE),) if getattr(head, "tied_to", "") else ()
        logits = head.apply({"params": drawn(head, TOKENS, *table)}, halves, *table)
        assert logits.dtype == jnp.float32
        rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
        assert np.mean(logits == rounded) < 0.5, head  # sums that were not rounded to the dtype of what was multiplied


def test_a_normed_layer_over_the_concatenated_parts_is_vilts():
    head = Classifier(classes=5, pool="cls", hidden_width=6, normed_width=7, norm_epsilon=1e-5, parts=3)
    params = drawn(head, TOKENS)
    h = linear(np.tanh(linear(X, params["project"])).reshape(2, 18), params["project_2"])
    norm = (torch.from_numpy(params["norm"][name]) for name in ("scale", "bias"))
    h = torch.nn.functional.gelu(torch.nn.functional.layer_norm(torch.from_numpy(h), (7,), *norm, 1e-5)).numpy()
    np.testing.assert_allclose(head.apply({"params": params}, TOKENS), linear(h, params["logits"]), rtol=1e-4, atol=1e-5)
