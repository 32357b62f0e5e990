import jax
import jax.numpy as jnp

from mmjax.core.types import Loss, Tokens


def test_tokens_and_losses_go_through_jax_transformations():
    tokens = Tokens(jnp.ones((1, 2, 3)), jnp.ones((1, 2), bool), positions=jnp.arange(2)[None])
    doubled = jax.jit(lambda t: jax.tree.map(lambda x: x * 2 if x.dtype == jnp.float32 else x, t))(tokens)
    assert isinstance(doubled, Tokens)
    assert doubled.segments is None
    assert float(doubled.embeddings.sum()) == 12.0

    losses = [Loss(jnp.float32(i), jnp.float32(1), {"accuracy": (jnp.float32(i), jnp.float32(1))}) for i in (2, 3)]
    total = jax.tree.map(jnp.add, *losses)
    assert (float(total.sum), float(total.count), float(total.metrics["accuracy"][0])) == (5.0, 2.0, 5.0)
