import jax.numpy as jnp

from mmjax.evaluate.prompts import prompts


def test_a_prompt_loses_its_end_and_moves_to_the_right():
    ids = jnp.array([[1, 5, 6, 2, 0], [1, 5, 6, 7, 8], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]], jnp.int32)
    mask = jnp.array([[1, 1, 1, 1, 0], [1] * 5, [1, 0, 0, 0, 0], [0] * 5], bool)
    batch = {"question": ids, "question_mask": mask, "valid": jnp.ones(4, bool)}
    found, real = prompts(batch, "question", (1,), eos=2, pad=0)
    assert found.tolist() == [[0, 0, 1, 5, 6], [1, 5, 6, 7, 8], [0, 0, 0, 0, 2], [0, 0, 0, 0, 1]]
    assert real.sum(axis=1).tolist() == [3, 5, 1, 1]
    found, real = prompts(batch, "", (1,), eos=2, pad=0)
    assert found.tolist() == [[1]] * 4 and real.all()


def test_a_text_may_begin_with_several_tokens():
    """Whisper's do."""
    ids, mask = jnp.array([[1, 9, 6, 2], [0, 0, 0, 0]], jnp.int32), jnp.array([[1, 1, 1, 1], [0] * 4], bool)
    batch = {"question": ids, "question_mask": mask, "valid": jnp.ones(2, bool)}
    found, real = prompts(batch, "question", (1, 9), eos=2, pad=0)
    assert found.tolist() == [[0, 1, 9, 6], [0, 0, 1, 9]] and real.sum(axis=1).tolist() == [3, 2]
    found, real = prompts(batch, "", (1, 9), eos=2, pad=0)
    assert found.tolist() == [[1, 9]] * 2 and real.all()
