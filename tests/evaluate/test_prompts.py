import jax.numpy as jnp

from mmjax.evaluate.prompts import prompts


def test_a_prompt_loses_its_end_and_moves_to_the_right():
    ids = jnp.array([[1, 5, 6, 2, 0], [1, 5, 6, 7, 8], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]], jnp.int32)
    mask = jnp.array([[1, 1, 1, 1, 0], [1] * 5, [1, 0, 0, 0, 0], [0] * 5], bool)
    batch = {"question": ids, "question_mask": mask, "valid": jnp.ones(4, bool)}
    found, real = prompts(batch, "question", bos=1, eos=2, pad=0)
    assert found.tolist() == [[0, 0, 1, 5, 6], [1, 5, 6, 7, 8], [0, 0, 0, 0, 2], [0, 0, 0, 0, 1]]
    assert real.sum(axis=1).tolist() == [3, 5, 1, 1]
    found, real = prompts(batch, "", bos=1, eos=2, pad=0)
    assert found.tolist() == [[1]] * 4 and real.all()
