"""What a source names, and that what is read is what was hashed."""

import gzip
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from synthboot.data import files
from synthboot.errors import DataError
from tests.limits import limit


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{name}"}}\n')
    return root


def names(source: object) -> list[str]:
    given = [str(s) for s in source] if isinstance(source, list) else str(source)
    return [found.name for found in files.find(given)[0]]


def passed_over(source: Path) -> dict[str, int]:
    return dict(files.find(str(source))[1])


def test_a_file_is_called_by_its_path_below_the_source(tmp_path: Path) -> None:
    tree(tmp_path, "a/README.md", "b/README.md", "b/c/README.md")
    assert names(tmp_path) == ["a/README.md", "b/README.md", "b/c/README.md"]
    assert names(tmp_path / "b") == ["README.md", "c/README.md"]
    assert names(tmp_path / "*" / "README.md") == ["a/README.md", "b/README.md"]


def test_files_of_one_name_from_several_sources_get_the_folders_that_tell_them_apart(tmp_path: Path) -> None:
    tree(tmp_path, "x/en/data.jsonl", "y/en/data.jsonl", "y/other.jsonl")
    sources = [tmp_path / "x/en/data.jsonl", tmp_path / "y/en/data.jsonl", tmp_path / "y/other.jsonl"]
    assert names(sources) == ["x/en/data.jsonl", "y/en/data.jsonl", "other.jsonl"]
    assert names([tmp_path / "x", tmp_path / "y"]) == ["x/en/data.jsonl", "y/en/data.jsonl", "other.jsonl"]


def test_a_file_that_is_reached_twice_is_read_once(tmp_path: Path) -> None:
    tree(tmp_path, "a/data.jsonl")
    (tmp_path / "a" / "latest.jsonl").symlink_to("data.jsonl")
    one = tmp_path / "a" / "data.jsonl"
    assert names([one, one, tmp_path / "a", tmp_path / "**" / "*.jsonl"]) == ["data.jsonl"]


def test_what_is_passed_over_in_a_folder_is_counted(tmp_path: Path) -> None:
    kept = ("A.JSONL", "b.Json.GZ", "c.txt.gz", "d.text", "e.MD", "f.Parquet", "deep/er/g.ndjson.zst", "deep/h.TSV.gz")
    hidden = (".git/x.json", "._d.text", ".ipynb_checkpoints/e.md", "__MACOSX/._a.jsonl", "deep/.h.txt")
    tree(tmp_path, *kept, *hidden, "t.py", "u.PY", "v.tex.gz", "w.tar.xz", "Makefile")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "self.txt").symlink_to("self.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    assert names(tmp_path) == sorted(kept)
    special = {"broken link, pipe or device": 4}
    suffixes = {".py": 2, ".tex.gz": 1, ".tar.xz": 1, "without a suffix": 1}
    assert passed_over(tmp_path) == {"hidden": 5, **suffixes, **special}
    assert files.counted(passed_over(tmp_path), 2) == "5 x hidden, 4 x broken link, pipe or device, 5 x others"


def test_linked_folders_are_read_and_loops_of_links_end(tmp_path: Path) -> None:
    tree(tmp_path, "outside/o.txt", "data/a/x.txt")
    data = tmp_path / "data"
    (data / "linked").symlink_to(tmp_path / "outside")
    for place in ("loop", "again", "a/up"):
        (data / place).symlink_to(data)
    assert names(data) == ["a/x.txt", "linked/o.txt"]
    assert names(data / "**" / "*.txt") == ["a/x.txt", "linked/o.txt"]


def test_a_name_that_is_no_utf8_has_an_id_all_the_same(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("coffee")
    (tmp_path / "café.txt").write_text("coffee, too")
    assert sorted(names(tmp_path)) == ["caf\\xe9.txt", "café.txt"]
    for found in files.find(str(tmp_path))[0]:
        assert files.contents(found.path, found.name)[0].startswith(f"{found.name} ")


@pytest.mark.parametrize("what", ["device", "pipe", "socket", "link to a device"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.jsonl"
    if what == "device":
        path = Path("/dev/zero")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)  # the whole path may be too long for a socket
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=f"is a {what.rpartition(' ')[2]}, not a file; put what it holds into a file"):
        files.find(str(path))
    with pytest.raises(DataError, match=r"not a file|No such device"):  # put in the place of a file since it was found
        files.contents(path)


def test_other_text_is_read_where_it_is_named_by_its_suffix_or_by_itself(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", "deep/c.py", "deep/d.py.gz", "e.pyc", "README", "f.txt", "g.tar.gz")
    assert names(tmp_path) == names(tmp_path / "*") == ["f.txt"]
    assert names(tmp_path / "**" / "*.py") == ["a.py", "deep/c.py"]
    assert names(tmp_path / "*" / "*.py.gz") == ["deep/d.py.gz"]
    assert names(tmp_path / "*.[tp]*") == names(tmp_path / "*.*") == ["f.txt"]  # no suffix is named
    assert names(tmp_path / "README") == ["README"]
    assert names(tree(tmp_path / "folder.py", "h.py", "i.txt")) == ["i.txt"]  # a folder is no pattern
    assert {found.kind for found in files.find([str(tmp_path / "README"), str(tmp_path / "*.py")])[0]} == {"text"}


@pytest.mark.parametrize("suffix", ["pdf", "DOCX", "html", "xlsx", "zip", "tar.gz", "csv.bz2"])
def test_what_holds_no_plain_text_is_not_read_whoever_names_it(tmp_path: Path, suffix: str) -> None:
    tree(tmp_path, f"a.{suffix}")
    remedy = r"known are \.jsonl.*; (take the text out of|save|unpack) it"
    for named in (tmp_path / f"a.{suffix}", tmp_path / f"*.{suffix}", tmp_path):
        with pytest.raises(DataError, match=remedy):
            files.find(str(named))


def test_nothing_to_read_says_what_there_is_instead(tmp_path: Path) -> None:
    tree(tmp_path, "a.py", "b.py", ".c.txt")
    for alone in ("world", "hub:owner/name"):
        with pytest.raises(DataError, match=f"corpus.source: {alone}: stands alone, not in a list with others"):
            files.find([alone])
    with pytest.raises(DataError, match=r"it holds 2 x \.py, 1 x hidden; known are \.jsonl.* named by its suffix"):
        files.find(str(tmp_path))
    with pytest.raises(DataError, match=r"~/texts/\*\.txt \(the shell alone knows `~`; write the path in full\): no such file"):
        files.find("~/texts/*.txt")
    for source in ("", "a\0b", "x" * 5_000, str(tmp_path / "a.py" / "b")):
        with pytest.raises(DataError, match=r"^corpus\.source: "):
            files.find(source)


def test_what_links_inside_a_folder_lead_to_tells_whether_it_has_changed(tmp_path: Path) -> None:
    tree(tmp_path, "elsewhere/data.arrow", "saved/state.json", "saved/.cache/x", "saved/dataset_dict.json")
    (tmp_path / "saved" / "train").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "dataset_info.json").write_text("{}")
    (tmp_path / "elsewhere" / "loop").symlink_to("..")
    before = files.contents(tmp_path / "saved")
    inside = ["dataset_dict.json", "state.json", "train/data.arrow", "train/dataset_info.json"]
    assert [line.split()[0] for line in before] == [f"saved/{name}" for name in inside]
    (tmp_path / "elsewhere" / "data.arrow").write_text("another")
    assert files.contents(tmp_path / "saved") != before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up its rights for a while, which it must have")
def test_what_may_not_be_read_is_an_error_and_not_an_empty_folder(tmp_path: Path) -> None:
    tree(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a").chmod(0)
    (tmp_path / "b" / "y.txt").chmod(0)
    code = (
        "import os, sys, pyarrow\n"
        "from synthboot.data import files\n"
        "from synthboot.errors import DataError\n"
        "os.seteuid(65534)\n"
        "for look in (files.find, lambda s: files.contents(files.find(s + '/b')[0][0].path)):\n"
        "    try: look(sys.argv[1])\n"
        "    except DataError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # up to the system's own
        folder.chmod(0o755)
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "a: cannot be listed: Permission denied" in said
    assert "y.txt: cannot be read to its end: Permission denied" in said


def test_bytes_read_in_any_order_have_the_hash_of_the_file(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.bin", random.Random(0)
    content = rng.randbytes(3 * files.BLOCK + 17)
    path.write_bytes(content)
    whole = files.contents(path)
    with files.opened(path) as file:
        for _ in range(20):
            start = file.seek(rng.randrange(len(content)))
            piece = file.read(rng.randrange(1, 2_000))
            assert piece == content[start : start + len(piece)]
            assert piece
        assert [files.described("a.bin", *file.hashed())] == whole
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert files.contents(path) != whole


def test_a_block_that_changes_between_two_reads_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(2 * files.BLOCK))
    with pytest.raises(DataError, match=r"a\.bin: has changed while it was read; run again"), files.opened(path) as file:
        file.read(10)
        file.seek(files.BLOCK)
        file.read(10)
        with open(path, "r+b") as other:
            other.write(b"x")
        file.seek(0)
        file.read(10)


def compressed(path: Path, piece: bytes, times: int) -> Path:
    if path.suffix == ".gz":
        with gzip.open(path, "wb") as out:
            for _ in range(times):
                out.write(piece)
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            for _ in range(times):
                out.write(piece)
    return path


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_compression_bomb_is_not_opened_to_its_end(tmp_path: Path, name: str) -> None:
    path = compressed(tmp_path / name, b"a" * (1 << 20), 40)
    started = time.process_time()
    with pytest.raises(DataError, match="opens to more than 100 times its size"), files.opened(path) as file:
        stream = files.decompressed(file)
        while stream.read(1 << 16):
            pass
    assert time.process_time() - started < limit(0.5)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_text_that_repeats_itself_is_no_bomb(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    lines = (b'{"text": "%b, but for %d"}\n' % (b"the same words, " * 20, rng.getrandbits(30)) for _ in range(20_000))
    content = b"".join(lines)
    path = compressed(tmp_path / name, content, 1)
    with files.opened(path) as file:
        stream = files.decompressed(file)
        assert sum(len(piece) for piece in iter(lambda: stream.read(1 << 20), b"")) == len(content) > files.FREE_EXPANSION


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_archive_is_an_error_wherever_it_is_cut_or_flipped(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    content = b"".join(b"%d\n" % rng.getrandbits(60) for _ in range(200))
    whole = compressed(tmp_path / name, content, 1).read_bytes()
    came: Counter[str] = Counter()
    for place in range(0, len(whole), 13):
        flipped = whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
        for kind, damaged in (("cut", whole[:place]), ("flipped", flipped)):
            (tmp_path / name).write_bytes(damaged)
            try:
                with files.opened(tmp_path / name) as file:
                    same = files.decompressed(file).read() == content
                came[f"{kind}, {'same' if same else 'other'} text"] += 1
            except DataError:
                came[f"{kind}, error"] += 1
    assert came["cut, same text"] == came["cut, other text"] == 0
    if name.endswith(".gz"):  # which has a checksum; a flip in its date does no harm
        assert came["flipped, other text"] == 0
