"""Records that can only be read onward: a record's number says which it is, whatever was asked for before."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import Balanced, Data, Grouped, HideLabels, Mix, Span, Subset, WordPiece
from mmjax.data.lacking import Lacking
from mmjax.data.onward import OnwardRecords
from mmjax.data.order import Draws, Order
from mmjax.data.reader import Partners, Reader
from mmjax.data.types import BadRecordError, Cuts


class Counted(OnwardRecords):
    """The numbers below `total`, and which positions they were read from; a number in `bad` cannot be read."""

    def __init__(self, total, size=None, window=4, bad=()):
        super().__init__(size or total, window)
        self.total, self.bad, self.opened = total, bad, []

    def read(self, position):
        self.opened.append(position)
        return ((number, number + 1) for number in range(position or 0, self.total))

    def record(self, example):
        if example in self.bad:
            raise BadRecordError(f"number {example}", "it is bad")
        return {"n": example, "text": f"number {example}"}

    def fingerprint(self):
        return f"{self.total}"


class Source:
    """A user's own, which builds records of this kind."""

    def __init__(self, *settings, **more):
        self.settings, self.more = settings, more

    def build(self):
        return Counted(*self.settings, **self.more)


def numbers(batches, steps):
    with batches:
        return np.concatenate([next(batches)["n"] for _ in range(steps)]).astype(int).tolist()


def built(data, name=""):
    return data.build(WordPiece(50).train(["number"]), 5, name)


@given(
    st.integers(1, 9), st.integers(1, 30), st.lists(st.integers(0, 120), max_size=12), st.lists(st.integers(0, 120), max_size=3)
)
def test_a_number_gives_its_record_whatever_was_asked_for_before(window, total, asked, noted):
    first, again = Counted(total, window=window), Counted(total, window=window)
    for number in (*noted, *asked):
        assert first[number]["n"] == number % total
    again.go_on(first.positions())
    for number in asked:
        assert again[number]["n"] == number % total


def test_reading_goes_on_at_the_last_position_that_is_not_too_late():
    first = Counted(100)
    first[38]
    assert first.positions()[-1] == [36, 36, 36] and [8, 8, 8] in first.positions()
    again = Counted(100)
    again.go_on([one for one in first.positions() if one[0] != 24] + [[7, 7, 7]])  # 7 begins none of its windows
    assert again[26]["n"] == 26 and again.opened == [20]
    assert again[31]["n"] == 31 and again.opened == [20]
    assert again[3]["n"] == 3 and again.opened == [20, None]


def test_the_next_turn_begins_where_the_last_one_ends():
    records = Counted(10, window=4)
    assert [records[n]["n"] for n in range(8, 24)] == [8, 9, *range(10), *range(4)]
    assert records.positions() == [[4, 4, 4], [7, 7, 7], [10, 10, 10], [14, 4, 4], [17, 7, 7], [20, 10, 10]]


def test_threads_get_the_same():
    records = Counted(1000, window=7)
    records.hold(64)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: records[number]["n"], range(3000)))
    assert found == [number % 1000 for number in range(3000)]


def test_what_threads_may_ask_for_at_once_is_in_hand():
    """Nine steps of eight: those that are ready, those that threads are at, and one more."""
    data = Data(Source(1000, window=3), batch_size=8, threads=3, prefetch=5)
    dataset = built(data)
    assert (dataset.onward[71]["n"], dataset.onward[0]["n"]) == (71, 0)
    assert dataset.onward.opened == [None]
    assert sorted(numbers(dataset.batches(), 30)) == sorted(range(240))


def test_a_window_is_shuffled_and_no_more():
    order = Order.of(Counted(40, window=8), 3, True)
    found = order.indices(0, 80)
    for start in range(0, 80, 8):
        assert sorted(found[start : start + 8]) == list(range(start, start + 8))
        assert found[start : start + 8] != list(range(start, start + 8))
    assert [n - 8 for n in found[8:16]] != found[:8]
    assert order.indices(13, 21) == found[13:21]
    assert Order.of(Counted(40, window=8), 4, True).indices(0, 80) != found
    assert Order.of(Counted(40, window=8), 3, False).indices(35, 50) == list(range(35, 50))


def test_another_one_is_of_the_same_window():
    records = Counted(40, window=8, bad=(17,))
    order = Order.of(records, 3, True)
    assert {order.replacement(57, attempt) for attempt in range(200)} == set(range(56, 64))
    bad = {}
    partners = Partners(records, order, bad, 20, Lacking({}))
    assert {partners[drawn]["n"] for drawn in range(40)} == set(range(16, 24)) - {17}
    assert bad == {"number 17": "it is bad"}
    whole = Reader(records, (), order, cache_mb=1)
    assert whole.record(17, 17, Draws(3, "pass"))[0]["n"] in range(16, 24)
    assert not whole._kept  # whose number never comes again


def test_an_evaluation_reads_so_many_and_looks_at_the_first():
    dataset = built(Data(Source(30, 10, bad=(3,)), batch_size=4, bad_record_limit=0.2))
    found = [batch["n"][batch["valid"]].astype(int).tolist() for batch in dataset.epoch()]
    assert found == [[0, 1, 2], [4, 5, 6, 7], [8, 9]]
    assert dataset.unreadable(5) == {"number 3": "it is bad"}
    assert [int(batch["n"][0]) for batch in dataset.try_records(3)] == [0, 1, 2]


def test_a_stream_that_ends_before_it_is_said_to_is_one_line():
    dataset = built(Data(Source(9, 10), batch_size=4), "validation")
    with pytest.raises(UserError, match=r"^data.validation: source.records=10: the stream ends after 9; give 9$"):
        list(dataset.epoch())
    again = built(Data(Source(9, 10), batch_size=4), "train")  # also from a position on
    again.onward.go_on([[8, 8, 8]])
    with again.batches(2) as batches, pytest.raises(UserError, match="ends after 9"):
        list(batches)
    with pytest.raises(UserError, match="source: there are no examples in it"):
        Counted(0, 5)[0]


def test_a_broken_window_is_read_again():
    class Breaking(Counted):
        def read(self, position):
            for example, after in super().read(position):
                if example == 10 and len(self.opened) == 1:
                    raise UserError("a.gz is damaged")
                yield example, after

    records = Breaking(40)
    with pytest.raises(UserError, match="damaged"):
        records[9]
    assert records[9]["n"] == 9 and records.opened == [None, 8]


def test_what_cannot_be_had_of_it_is_one_line():
    for fields, line in (
        ({"workers": 2}, r"workers=2: what can only be read onward is read once; use 0"),
        ({"order": "blocks"}, r"order='blocks': what can only be read onward is shuffled within its window; use records"),
        ({"columns": {"text": Span("text", "text")}}, "Counted can only be read from its beginning on, and Span"),
    ):
        with pytest.raises(UserError, match=line):
            built(Data(Source(9), batch_size=4, **fields))
    wrappers = (Mix({"a": Source(9)}), Balanced(Source(9)), Subset(Source(9)), Grouped(Source(9), "n"), HideLabels(Source(9)))
    for wrapper in wrappers:
        name = type(wrapper).__name__
        line = f"Counted can only be read from its beginning on, and {name} looks records up in any order: `mmjax data prepare`"
        with pytest.raises(UserError, match=re.escape(line)):
            wrapper.build()


def test_a_position_is_json():
    class Odd(Counted):
        def read(self, position):
            return ((example, {after}) for example, after in super().read(None))

    with pytest.raises(UserError, match=r"source: a position that Odd.read gives is no JSON .*: \{4\}"):
        Odd(40)[9]


def test_a_position_that_its_owner_changes_is_what_it_was():
    class Changing(Counted):
        def read(self, position):
            state = dict(position or {"at": 0})
            self.opened.append(dict(state))
            while state["at"] < self.total:
                state["at"] += 1
                yield state["at"] - 1, state

    first, again = Changing(40), Changing(40)
    assert first[30]["n"] == 30 and first.positions()[1] == [8, {"at": 8}, 8]
    again.go_on(first.positions())
    assert again[21]["n"] == 21 and again.opened == [{"at": 20}]


@given(st.integers(1, 50), st.integers(1, 60))
def test_windows_part_a_turn_evenly(size, window):
    cuts = Cuts(size, window)
    starts = [cuts.start(one) for one in range(2 * cuts.count + 1)]
    assert starts[:: cuts.count] == [0, size, 2 * size] and cuts.count == -(-size // window)
    lengths = set(np.diff(starts))
    assert max(lengths) <= window and max(lengths) - min(lengths) <= 1
    numbers = np.arange(2 * size)
    assert (cuts.of(numbers) == np.searchsorted(starts, numbers, side="right") - 1).all()


@pytest.mark.parametrize("window", [1, 7, 30, 1000])
def test_an_epoch_has_each_once(window):
    order = Order.of(Counted(30, window=window), 3, True)
    for start in range(0, 120, 30):
        assert sorted(n % 30 for n in order.indices(start, start + 30)) == list(range(30))


def test_what_is_no_stream_is_one_line():
    class Bare(Counted):
        def read(self, position):
            return iter(range(9))

    with pytest.raises(UserError, match=r"Bare.read gives an example and the position after it; found 0"):
        Bare(9)[0]
    for size, window in ((0, 4), (9, 0), (-1, 4)):
        with pytest.raises(UserError, match=r"source: Counted: .*: give a whole number from 1 up"):
            OnwardRecords.__init__(Counted(9), size, window)


def test_a_copy_begins_anew():
    records = Counted(40)
    records[9]
    assert pickle.loads(pickle.dumps(records))[9]["n"] == 9
