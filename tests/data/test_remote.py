"""Files at an address: what is there, bytes of it, and what is said where it cannot be had."""

import importlib
import io
import os
import sys
import types

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Served

from mmjax.core.errors import UnreachableError, UserError
from mmjax.data.files import remote

RESET = OSError("connection reset\nby peer")


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(Served, "root", tmp_path, raising=False)
    monkeypatch.setattr(Served, "calls", [])
    monkeypatch.setattr(remote, "WAITS", (0, 0, 0))
    return tmp_path


def failing(monkeypatch, times, error=RESET, method="cat"):
    """The next so many requests fail."""
    left = [times]

    def trouble(asked, path):
        if asked == method and left[0] > 0:
            left[0] -= 1
            raise error

    monkeypatch.setattr(Served, "trouble", staticmethod(trouble))


@pytest.mark.parametrize("path", ["gs://b/a.tar", "s3://b", "memory://a", "file:///a", "abfs+x://a"])
def test_addresses(path):
    assert remote.is_address(path)
    assert remote.joined("/here", path) == path
    assert remote.joined(path, "b/c.png") == f"{path}/b/c.png" and remote.joined(path, "/there") == "/there"


@pytest.mark.parametrize("path", ["a.tar", "/a/b", "C:/a", "", None, b"gs://a", "a b://c", "../x://y"])
def test_what_is_none(path):
    assert not remote.is_address(path)


def test_folders_of_addresses():
    assert remote.parent("gs://b/c/a.tar") == "gs://b/c" and remote.parent("memory://a.tar") == "memory://"
    assert remote.parent("a.tar") == "" and remote.parent("/a/b:/c") == "/a/b:"


def test_patterns():
    assert remote.has_pattern("gs://b/*.tar") and remote.has_pattern("s3://b/a?.tar") and not remote.has_pattern("gs://b/a.tar")
    assert not remote.has_pattern("https://host/a.tar?token=[x]")
    with pytest.raises(UserError, match=r"^https://host/\*\.tar: nothing can be listed"):
        remote.has_pattern("https://host/*.tar")


def test_a_missing_package_is_named(monkeypatch):
    def refuse(protocol):
        raise ImportError(f"Please install\n{protocol}fs")

    monkeypatch.setattr(importlib.import_module("fsspec.registry"), "get_filesystem_class", refuse)
    for address, said in (
        ("gs://b/a", r"^gs://b/a: what opens gs:// is not installed: pip install 'mmjax\[gcs\]'$"),
        ("s3://b/a", r"^s3://b/a: what opens s3:// is not installed: pip install 'mmjax\[s3\]'$"),
        ("abfs://b/a", r"^abfs://b/a: what opens abfs:// is not installed: Please install abfsfs$"),
    ):
        with pytest.raises(UserError, match=said):
            remote.content(address)


def test_an_unknown_protocol_is_named():
    with pytest.raises(UserError, match=r"^gss://b/a: gss:// is no protocol that fsspec knows"):
        remote.content("gss://b/a")


def test_what_fails_is_tried_again_and_then_said_in_a_line(bucket, monkeypatch):
    (bucket / "a").write_bytes(b"abc")
    failing(monkeypatch, 3)
    assert remote.content("served://a") == b"abc" and len(Served.calls) == 4
    failing(monkeypatch, 4)
    with pytest.raises(UnreachableError, match=r"^served://a cannot be read: connection reset by peer \(OSError\)$"):
        remote.content("served://a")
    Served.calls.clear()
    failing(monkeypatch, 1, PermissionError("no credentials"))
    with pytest.raises(UnreachableError, match=r"no credentials \(PermissionError\)$"):
        remote.content("served://a")
    assert len(Served.calls) == 1, "permission does not come by asking again"
    failing(monkeypatch, 1, AttributeError("ours"))
    with pytest.raises(AttributeError, match="ours"):
        remote.content("served://a")


def test_no_attempt_begins_once_a_client_has_tried_for_long(bucket, monkeypatch):
    (bucket / "a").write_bytes(b"abc")
    monkeypatch.setattr(remote, "PATIENCE", -1.0)
    failing(monkeypatch, 1)
    with pytest.raises(UnreachableError, match="connection reset by peer"):
        remote.content("served://a")
    assert len(Served.calls) == 1


def test_a_connection_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(ClientTimeout=types.SimpleNamespace))
    for protocol, field in (("gs", "session_kwargs"), ("https", "client_kwargs")):
        assert remote._patient(protocol)[field]["timeout"].sock_read == remote.SILENCE
        assert remote._patient(protocol)[field]["timeout"].total is None, "what comes slowly, comes"
    monkeypatch.setitem(fsspec.config.conf, "gcs", {"session_kwargs": {"timeout": 5, "trust_env": True}})
    assert remote._patient("gs") == {"session_kwargs": {"timeout": 5, "trust_env": True}} == remote._patient("gcs")
    assert remote._patient("s3") == {} == remote._patient("memory")


def test_what_is_not_there_is_not_asked_for_again(bucket):
    with pytest.raises(FileNotFoundError) as raised:
        remote.content("served://absent")
    assert raised.value.filename == "served://absent" and len(Served.calls) == 1
    with pytest.raises(UserError, match=r"^served://absent: no such file$"):
        remote.stamps(["served://absent"])


def test_stamps_change_with_the_file_and_come_from_one_listing(bucket):
    names = [f"{number:02}.tar" for number in range(30)]
    for number, name in enumerate(names):
        (bucket / name).write_bytes(bytes(number))
    addresses = [f"served://{name}" for name in names]
    listed = remote.stamps(addresses)
    assert [size for size, _ in listed] == list(range(30)) and [one for one in Served.calls if one[0] == "info"] == []
    assert remote.stamps(addresses[3:5]) == listed[3:5], "one by one they are the same"
    os.utime(bucket / "03.tar", ns=(1, 1))
    assert remote.stamps(addresses[3:4])[0][1] != listed[3][1] and remote.stamps(addresses[3:4])[0][0] == 3
    with pytest.raises(UserError, match=r"served://99\.tar: no such file"):
        remote.stamps([*addresses, "served://99.tar"])
    (bucket / "folder").mkdir()
    with pytest.raises(UserError, match="served://folder is a folder"):
        remote.stamps(["served://folder"])


def test_a_size_that_is_not_said(bucket, monkeypatch):
    (bucket / "a").write_bytes(b"abc")
    monkeypatch.setattr(Served, "info", lambda self, path, **_: {"name": path, "type": "file", "size": None})
    with pytest.raises(UserError, match="the server does not say how large it is"):
        remote.stamps(["served://a"])


def test_listings_are_those_of_a_disk(bucket):
    for name in ("b.tar", "a.tar", ".hidden.tar", "c.txt", "deep/er/d.tar"):
        (bucket / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (bucket / "s" / name).touch()
    assert remote.matching("served://s/*.tar") == ["served://s/a.tar", "served://s/b.tar"]
    assert remote.matching("served://s/?.t[xa][tr]") == [f"served://s/{name}" for name in ("a.tar", "b.tar", "c.txt")]
    assert remote.matching("served://s/**/*.tar")[-1] == "served://s/deep/er/d.tar"
    assert remote.below("served://s", ".txt") == ["served://s/c.txt"]
    assert remote.matching("served://s/*.zip") == [] == remote.matching("served://absent/*") == remote.below("served://no", "")


CONTENT = bytes(range(256)) * 3


@given(st.lists(st.tuples(st.integers(0, 800), st.integers(0, 300)), max_size=6), st.integers(1, 100))
def test_ranges_and_files_are_the_bytes(reads, buffer):
    fsspec.filesystem("memory").pipe("/r/a", CONTENT)
    file, plain = io.BufferedReader(remote.RemoteFile("memory://r/a"), buffer), io.BytesIO(CONTENT)
    assert file.seek(0, os.SEEK_END) == len(CONTENT)
    for place, count in reads:
        assert remote.ranged("memory://r/a", place, count, len(CONTENT)) == CONTENT[place : place + count]
        file.seek(place), plain.seek(place)
        assert file.read(count) == plain.read(count)


def test_a_server_without_ranges_and_one_that_breaks_off(bucket, monkeypatch):
    (bucket / "a").write_bytes(b"0123456789")
    monkeypatch.setattr(Served, "cat_file", lambda self, path, **_: b"0123456789")
    assert remote.ranged("served://a", 3, 4, 10) == b"3456"
    monkeypatch.setattr(Served, "cat_file", lambda self, path, **_: b"345")
    with pytest.raises(UnreachableError, match="3 bytes came of the 4 from byte 3 on"):
        remote.ranged("served://a", 3, 4, 10)
