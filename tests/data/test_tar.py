"""The members of tar files that no disk of a test holds: what is read is a function here."""

import itertools
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.data.files.tar import BLOCK, Member, TarError, members


def made(entries, form, more=()):
    """`read` of a tar of (name, size), whose contents are "x", and its size."""
    parts, place = [], 0
    for name, size in entries:
        info = tarfile.TarInfo(name)
        info.size = size
        header = info.tobuf(form, "utf-8", "surrogateescape")
        parts.append((place, header))
        place += len(header) + -(-size // BLOCK) * BLOCK
    parts += [(place + at, data) for at, data in more]
    size = place + 2 * BLOCK

    def read(at, count):
        count = min(count, size - at)
        for start, data in parts:
            if start <= at < start + len(data):
                return data[at - start : at - start + count].ljust(count, b"\0")
        return bytes(count)

    return read, size


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_more_than_8_gigabytes(form):
    read, size = made([("a.mp4", 9 << 30), ("a.txt", 5)], form)
    first, second = members(read, 0, size)
    assert (first.name, first.start, first.size) == ("a.mp4", 0, 9 << 30) and second.start == first.end == first.data + (
        9 << 30
    )
    assert second == Member("a.txt", first.end, first.end + BLOCK, 5) and size == second.end + 2 * BLOCK
    assert list(members(read, second.start, second.end, whole=False)) == [second]


NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=130)


@given(st.lists(st.tuples(NAMES, st.integers(0, 3000)), max_size=5), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_names_and_places_are_those_of_tarfile(entries, form):
    entries = [(name, size) for name, size in entries if name not in (".", "..")]
    read, size = made(entries, form)
    found = list(members(read, 0, size))
    assert [(member.name, member.size) for member in found] == entries
    assert all(a.end == b.start for a, b in itertools.pairwise(found))


def test_a_long_name_without_its_member():
    read, _ = made([("d" * 150, 0)], tarfile.GNU_FORMAT)
    only = 2 * BLOCK  # the header of the name and the name
    with pytest.raises(TarError, match="the member whose long name stands at byte 0 does not follow"):
        list(members(lambda at, count: read(at, count) if at < only else bytes(count), 0, only + 2 * BLOCK))


def test_what_a_global_header_may_say():
    comment, path = (
        tarfile.TarInfo.create_pax_global_header(headers) for headers in ({"comment": "a commit"}, {"path": "b.txt"})
    )
    plain = tarfile.TarInfo("a.txt").tobuf(tarfile.USTAR_FORMAT)

    def read_of(data):
        return lambda at, count: data[at : at + count]

    whole = comment + plain + bytes(2 * BLOCK)
    assert [member.name for member in members(read_of(whole), 0, len(whole))] == ["a.txt"]
    whole = path + plain + bytes(2 * BLOCK)
    with pytest.raises(TarError, match="gives every member one path"):
        list(members(read_of(whole), 0, len(whole)))
