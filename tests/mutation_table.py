"""Small mistakes that a careful engineer makes, each of which some test must see: what `mutations.py` puts into the code.

`old` stands exactly once in `file`; `tests` are the narrowest paths that should see `new` in its place: words for pytest, files
by globs that survive a renaming, `-k WORD` where a room is large.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    breaks: str
    file: str
    tests: str
    old: str
    new: str


# fmt: off
MUTATIONS = (
    # core
    Mutation("key_by_place", "an example's random key depends on its place in the micro-batch",
             "mmjax/core/random.py", "tests/core/test_random*.py",
             "return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index_B)",
             "return jax.random.split(key, index_B.shape[0])"),
    # distillation
    Mutation("distil_direction", "the divergence is the student's from the teacher",
             "mmjax/objectives/teaching.py", "tests/objectives/test_distil.py",
             "jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)",
             "jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)"),
    Mutation("teacher_recomputed", "micro-batches run a teacher again for their backward pass",
             "mmjax/train/step.py", "tests/train/test_teachers.py",
             "policy=jax.checkpoint_policies.save_only_these_names(TAUGHT)",
             "policy=jax.checkpoint_policies.nothing_saveable"),
    Mutation("teacher_pixels", "a teacher is given pixels normalised as the student's",
             "mmjax/models/teaching.py", "tests/train/test_teachers.py",
             "found[image] = found[image] * next(channels) + next(channels)",
             "found[image] = found[image]"),
    Mutation("teacher_figures", "what only a figure asks of a teacher is not kept",
             "mmjax/train/asked.py", "tests/train/test_teachers_kinds.py -k figure",
             "return [[getattr(loss, field.name) for field in dataclasses.fields(loss)] for loss in found.values()]",
             "return [loss.sum for loss in found.values()]"),
    Mutation("teacher_numbers", "a head of numbers teaches classes",
             "mmjax/train/taught.py", "tests/train/test_teachers_kinds.py -k numbers",
             "if theirs in setup.teachers[teacher].numbers:",
             "if theirs in ():"),
    Mutation("hidden_silently", "no class is named that keeps no label",
             "mmjax/data/sources/hide_labels.py", "tests/data/test_source_hide_labels.py",
             "        if bare:",
             "        if not bare:"),
    # prepared shards and the page of data
    Mutation("prepared_pixels", "a file is kept whatever its pixels are",
             "mmjax/data/sources/prepared.py", "tests/data/test_source_prepared.py",
             "return np.array_equal(decode_image(encoded, \"\", None, sys.maxsize), image_HW3)",
             "return decode_image(encoded, \"\", None, sys.maxsize).shape == image_HW3.shape"),
    Mutation("prepared_missing", "a folder with missing shards is read",
             "mmjax/data/sources/prepared.py", "tests/data/test_prepare.py",
             "if gone := self.missing(folder):", "if (gone := self.missing(folder)) and not gone:"),
    Mutation("prepared_unreadable", "unreadable records leave their places",
             "mmjax/data/prepare.py", "tests/data/test_prepare.py",
             "return unreadable_of(error, label, texts), \"\", (index, error.path, error.reason)",
             "return _example(records, index - 1)"),
    Mutation("prepared_half", "a shard that was cut counts as whole",
             "mmjax/data/prepare.py", "tests/data/test_prepare.py",
             "return shard if there == shard.size and", "return shard if there and"),
    Mutation("near_pixels", "near hashes count whatever the pixels are",
             "mmjax/data/duplicates.py", "tests/data/test_duplicates.py",
             "if apart <= NEAR and", "if apart >= 0 and"),
    Mutation("near_blocks", "records of different blocks are not compared",
             "mmjax/data/duplicates.py", "tests/data/test_duplicates.py",
             "block_B[:, None] ^ hash_N[start:]", "block_B[:, None] ^ block_B"),
    Mutation("page_harm", "texts are put into the page as they are",
             "mmjax/data/html.py", "tests/data/test_inspect_page.py",
             "return html.escape(str(value).encode(\"utf-8\", \"backslashreplace\").decode(), quote=True)",
             "return str(value)"),
    Mutation("page_colours", "pictures are shown without their deviation",
             "mmjax/data/inspect_page.py", "tests/data/test_inspect_page.py",
             "found * np.array(normalised.std, np.float32) + ", "found + "),
