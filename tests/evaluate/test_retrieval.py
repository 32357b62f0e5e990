import numpy as np
import pytest
from fake_evaluation import FakeTokenizer, make_evaluation, make_params, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data.strings import StringsColumn
from mmjax.evaluate.retrieval import Retrieval, best_ranks

PARAMS = make_params()


def naive_recall(scores, group, k):
    """A query hits when a right answer is among the first k of the list that puts wrong answers before right ones on a tie."""
    hits = 0
    for query, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda answer: (-row[answer], group[answer] == group[query]))
        first_right = next(place for place, answer in enumerate(order) if group[answer] == group[query])
        wrong_before = sum(group[answer] != group[query] for answer in order[:first_right])
        hits += wrong_before < k
    return hits / len(scores)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_recall_is_that_of_a_naive_search(data):
    size = data.draw(st.integers(1, 7))
    vectors = st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=size, max_size=size)
    query, answer = (np.array(data.draw(vectors), np.float32) for _ in range(2))
    group = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    rank = best_ranks(query, answer, group, block_scores=data.draw(st.integers(1, 50)))
    for k in (1, 2, 5):
        assert np.mean(rank < k) == pytest.approx(naive_recall(query @ answer.T, group, k))


def pairs(size=11):
    rng = np.random.default_rng(0)
    text = rng.integers(1, 64, (size, 5)).astype(np.int32)
    mask = np.arange(5)[None] < rng.integers(1, 6, (size, 1))
    return {"image": rng.normal(size=(size, 6)).astype(np.float32), "text": text * mask, "text_mask": mask}


@pytest.mark.parametrize("group", [None, np.arange(11, dtype=np.int32) // 3])
def test_both_ways_and_the_mean(group):
    columns = pairs()
    image = unit(columns["image"] @ PARAMS["image"])
    mask = columns["text_mask"][..., None]
    text = unit((PARAMS["table"][columns["text"]] * mask).sum(axis=1) / mask.sum(axis=1))
    scores = image @ text.T
    if group is not None:
        columns["group"] = group
    metrics = Retrieval(at=(1, 3))(make_evaluation(columns, batch_size=4), PARAMS)
    right = np.arange(11) if group is None else group
    expected = {f"image_to_text_r{k}": naive_recall(scores, right, k) for k in (1, 3)}
    expected |= {f"text_to_image_r{k}": naive_recall(scores.T, right, k) for k in (1, 3)}
    assert metrics == pytest.approx(expected | {"mean_recall": np.mean(list(expected.values()))})


def test_five_captions_an_image_are_five_queries_and_five_answers():
    """As lines of their own with an `image_id`, and as texts of one record: against a search by hand."""
    rng = np.random.default_rng(3)
    words = [f"word{i}" for i in range(40)]
    texts = [[" ".join(rng.choice(words, 4)) for _ in range(5)] for _ in range(7)]
    image = rng.normal(size=(7, 6)).astype(np.float32)
    found = FakeTokenizer().encode([text for own in texts for text in own], 8)
    group = np.repeat(np.arange(7), 5).astype(np.int32)
    lines = {"image": image[group], "text": found["ids"], "text_mask": found["mask"], "group": group, "image_id": group}
    kept, _ = StringsColumn("captions", 5, 64)(texts, ())
    whole = Retrieval(at=(1, 5), captions="captions")(make_evaluation({"image": image, **kept}), PARAMS)
    assert Retrieval(at=(1, 5))(make_evaluation(lines), PARAMS) == pytest.approx(whole)

    mask = found["mask"][..., None]
    said = unit((PARAMS["table"][found["ids"]] * mask).sum(axis=1) / mask.sum(axis=1))
    scores = unit(image @ PARAMS["image"]) @ said.T
    for k in (1, 5):
        own = [(scores[i] > max(scores[i][group == i])).sum() < k for i in range(7)]  # COCO's: the best of its five
        assert whole[f"image_to_text_r{k}"] == pytest.approx(np.mean(own))
        back = [(scores[:, m] > scores[group[m], m]).sum() < k for m in range(35)]
        assert whole[f"text_to_image_r{k}"] == pytest.approx(np.mean(back))
    with pytest.raises(UserError, match="has no text in 'captions'"):
        empty, _ = StringsColumn("captions", 5, 64)([None] * 7, ())
        Retrieval(captions="captions")(make_evaluation({"image": image, **empty}), PARAMS)


def test_a_collapsed_or_diverged_model_finds_nothing():
    for value in (1.0, np.nan):
        rows = np.full((6, 2), value, np.float32)
        np.testing.assert_array_equal(best_ranks(rows, rows, np.arange(6)), 5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"at=\(0, 1\)"):
        Retrieval(at=(0, 1))
    with pytest.raises(UserError, match=r"modalities=\('text', 'text'\)"):
        Retrieval(modalities=("text", "text"))
    with pytest.raises(UserError, match="has no 'text'"):
        Retrieval()(make_evaluation({"image": pairs()["image"]}), PARAMS)
