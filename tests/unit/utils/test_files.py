import json
import os
import stat

import pytest

from prune_lab.utils.files import clone, share, write_atomically, write_json, write_text


def test_text_is_written_as_utf8_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()


def test_json_can_be_read_again(tmp_path):
    value = {"a": [1, 2.5, None], "ü": {"nested": True}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_what_cannot_be_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def look(temporary):
        temporary.write_text("new")
        assert temporary.parent == path.parent  # a rename within one file system
        assert path.read_text() == "old"

    write_atomically(path, look)
    assert path.read_text() == "new"


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x.txt", "")
        assert os.umask(0o027) == 0o027  # writing does not change it
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == 0o640


def test_a_copy_shares_no_inode_with_its_source(tmp_path):
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(bytes(range(256)) * 5000)
    source.chmod(0o600)
    before = os.umask(0o022)
    try:
        clone(source, target)
    finally:
        os.umask(before)
    assert target.read_bytes() == source.read_bytes() and not target.samefile(source)
    target.write_bytes(b"changed")
    assert source.stat().st_size == 256 * 5000
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_a_folder_is_shared_as_the_umask_says(tmp_path):
    below = tmp_path / "folder" / "below"
    below.mkdir(parents=True, mode=0o700)
    (below / "file").touch(mode=0o600)
    before = os.umask(0o027)
    try:
        share(tmp_path / "folder")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (below, below / "file")] == [0o750, 0o640]
