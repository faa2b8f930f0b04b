"""Sources at URLs: the same documents and names as from a disk, and one line for whatever is wrong."""

import gzip
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot import config
from synthboot.data import documents, files, remote
from synthboot.errors import DataError


def lines(*names: str) -> bytes:
    return b"".join(json.dumps({"id": name, "text": f"The text of {name}."}).encode() + b"\n" for name in names)


def fill(place: Path) -> None:
    """Files of every kind, in folders, and some to pass over."""
    for name, content in {
        "a/one.jsonl": lines("one", "two"),
        "a/deep/three.jsonl.gz": gzip.compress(lines("three")),
        "b/four.txt": b"The text of a file.",
        "b/.hidden.jsonl": lines("hidden"),
        "b/table.csv": b"a,b",
    }.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    pq.write_table(pa.table({"id": ["five"], "text": ["The text of five."]}), place / "b" / "five.parquet")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


@pytest.fixture
def memory(disk: Path) -> str:
    """The same files in a file system that is no disk."""
    system = fsspec.filesystem("memory")
    root = f"/{uuid4().hex}"
    system.put(str(disk), root, recursive=True)
    return f"memory:/{root}"


@pytest.fixture
def web(disk: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(disk)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def read(source: str | list[str]) -> list[documents.Document | documents.Reject]:
    """The documents of a source, read as a run reads them: against what it is known by."""
    cfg = config.Corpus(source=source)
    expected = documents.identity(source)
    return [documents.parse(record, cfg) for record in documents.records(cfg, expected=expected)]


@pytest.mark.parametrize("pattern", ["", "/a", "/a/one.jsonl", "/*/*.jsonl", "/**/*.jsonl*", "/b/five.parquet", "/[ab]"])
def test_the_documents_and_names_of_a_disk(disk: Path, memory: str, pattern: str) -> None:
    here, here_ignored = files.find(f"{disk}{pattern}")
    there, ignored = files.find(f"{memory}{pattern}")
    assert [(file.name, file.kind) for file in there] == [(file.name, file.kind) for file in here]
    del ignored["hidden"], here_ignored["hidden"]  # which a pattern of a disk's does not match
    assert ignored == here_ignored
    assert read(f"{memory}{pattern}") == read(f"{disk}{pattern}")
    assert read(f"file://{disk}{pattern}") == read(f"{disk}{pattern}")


def test_sources_here_and_there_side_by_side(disk: Path, memory: str) -> None:
    both = read([f"{memory}/a/one.jsonl", str(disk / "b" / "five.parquet"), f"{memory}/a/one.jsonl"])
    assert [document.id for document in both if isinstance(document, documents.Document)] == ["one", "two", "five"]


def test_a_file_that_changes_is_another(memory: str) -> None:
    source = f"{memory}/a/one.jsonl"
    before = documents.identity(source)
    assert documents.identity(source) == before
    cfg = config.Corpus(source=source)
    reading = documents.records(cfg, expected=before)
    next(reading)
    fsspec.filesystem("memory").pipe(source.removeprefix("memory:/"), lines("one", "six"))
    assert documents.identity(source) != before
    with pytest.raises(DataError, match=r"one\.jsonl: has changed since this run began to look at it"):
        list(reading)


def test_a_file_from_a_web_server(web: str, disk: Path) -> None:
    assert read(f"{web}/a/one.jsonl") == read(str(disk / "a" / "one.jsonl"))
    assert read(f"{web}/a/deep/three.jsonl.gz?download=true") == read(str(disk / "a" / "deep" / "three.jsonl.gz"))
    with pytest.raises(DataError, match=r"corpus\.source: http.*/none\.jsonl: there is no such file"):
        documents.identity(f"{web}/none.jsonl")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://nowhere/a.jsonl", "there is no such file, folder or bucket"),
        ("memory://nowhere/*.jsonl", "no such file, or nothing in it that can be read"),
        ("nosuch://bucket/a.jsonl", "Protocol not known: nosuch"),
        ("gdrive://bucket/a.jsonl", r"needs a package that is not installed \(.*gdrive"),
        ("simplecache::memory://a.jsonl", "a chain of protocols; name the files themselves"),
        ("http://127.0.0.1:9/a.jsonl", "cannot be read: .*is it there, and the network"),
    ],
)
def test_what_is_wrong_in_a_line(source: str, message: str) -> None:
    with pytest.raises(DataError, match=f"corpus.source: .*{message}") as raised:
        documents.identity(source)
    assert "\n" not in str(raised.value)


def test_a_password_is_neither_taken_nor_told(memory: str) -> None:
    with pytest.raises(DataError, match="a URL with a name or password in it") as raised:
        documents.identity("https://me:secret@127.0.0.1/a.jsonl")
    assert "secret" not in str(raised.value)


def test_a_saved_dataset_elsewhere_is_not_read_as_lines(memory: str) -> None:
    fsspec.filesystem("memory").pipe(f"{memory.removeprefix('memory:/')}/set/dataset_info.json", b"{}")
    with pytest.raises(DataError, match="is a saved dataset, which is read from a disk"):
        documents.identity(f"{memory}/set")


def test_an_object_server(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a server on this machine that speaks S3; needs s3fs and moto[server] (`make remote`)."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("texts")
        system.put(str(disk), "texts/set", recursive=True)
        assert read("s3://texts/set") == read(str(disk))
        assert read("s3://texts/set/*/*.jsonl") == read(str(disk / "*" / "*.jsonl"))

        before = documents.identity("s3://texts/set/a/one.jsonl")
        system.pipe("texts/set/a/one.jsonl", lines("one", "six"))
        assert documents.identity("s3://texts/set/a/one.jsonl") != before
        with pytest.raises(DataError, match="there is no such file, folder or bucket"):
            documents.identity("s3://other/a.jsonl")
    finally:
        server.stop()


def test_other_text_is_read_where_its_address_names_it(memory: str) -> None:
    system = fsspec.filesystem("memory")
    for name in ("notes.py/README", "notes.py/a.py", "notes.py/b.txt"):
        system.pipe(f"/{name}", b"words\n")
    sources = {
        source: [file.name for file in files.find(f"memory://notes.py{source}")[0]] for source in ("", "/README", "/*.py")
    }
    assert sources == {"": ["b.txt"], "/README": ["README"], "/*.py": ["a.py"]}


def test_marks_of_a_web_address_are_letters_of_any_other_name(disk: Path, memory: str) -> None:
    odd = disk / "odd #1"
    odd.mkdir()
    for name in ("a#1.jsonl", "b.jsonl", "q?.jsonl"):
        (odd / name).write_bytes(lines(name))
        fsspec.filesystem("memory").pipe(f"/odd/odd #1/{name}", lines(name))
    here, _ = files.find(str(odd))
    assert [file.name for file in files.find(f"file://{odd}")[0]] == [file.name for file in here]
    assert read("memory://odd") == read(str(odd))
    web = remote.Url("https://there/folder/a.jsonl?download=true#top", 1, "")
    assert (web.name, web.parts[0]) == ("a.jsonl", "there")
