"""Paths are found as users write them, and looking for them ends."""

import os
from pathlib import Path

import pytest

from prune_lab.utils.paths import TooManyFiles, local_path, named_paths, regular_files, why_missing


def below(path, most=100, **bounds):
    return sorted(os.path.relpath(file, path) for file, _ in regular_files(path, most, **bounds))


def test_a_tilde_is_a_home_folder_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a") == tmp_path / "a"
    assert local_path("~") == tmp_path
    assert local_path("~no_such_user_here/a") == Path("~no_such_user_here/a")
    assert local_path("a~/b") == Path("a~/b")


@pytest.mark.parametrize("name", ["a[1].txt", "a*.txt", "a?.txt", "a=b.txt", "**", "a b,c.txt", "~x.txt"])
def test_what_is_there_is_meant_and_no_pattern(tmp_path, name):
    for other in ("a1.txt", "ab.txt", name):
        (tmp_path / other).touch()
    assert named_paths(str(tmp_path / name)) == [tmp_path / name]


def test_what_is_not_there_is_a_pattern(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a1.txt", "a2.txt", "b/a1.txt"):
        (tmp_path / name).touch()
    assert named_paths(str(tmp_path / "a[12].txt")) == [tmp_path / "a1.txt", tmp_path / "a2.txt"]
    assert len(named_paths(str(tmp_path / "**/*.txt"))) == 3


@pytest.mark.parametrize("pattern", ["**", "**/x.txt", "*", "*/*"])
def test_looking_for_matches_ends_too(tmp_path, pattern):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(8):
            (tmp_path / folder / f"{number}.txt").touch()
            (tmp_path / f"{folder}{number}").touch()
    with pytest.raises(TooManyFiles, match="more than 10 files lie there"):
        named_paths(str(tmp_path / pattern), most=10)
    assert named_paths(str(tmp_path / "a" / "1*"), most=10) == [tmp_path / "a/1.txt"]


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "\ud800/*", "no/such/folder/*", "/dev/null/x"])
def test_what_can_be_no_path_names_nothing_and_it_is_said_why(text):
    assert named_paths(text) == []
    assert why_missing(text).startswith(("cannot be", "there is no such file"))


def test_every_regular_file_counts_once_and_nothing_else_does(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "a").touch()
    (tmp_path / "in" / "deep" / "b").touch()
    (tmp_path / "elsewhere" / "c").touch()
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "nowhere").symlink_to("no such file")
    (tmp_path / "in" / "file").symlink_to(tmp_path / "elsewhere" / "c")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert below(tmp_path / "in") == ["a", "deep/b", "file", "folder/c"]
    assert [file for file, _ in regular_files(tmp_path / "in" / "a", 1)] == [str(tmp_path / "in" / "a")]
    assert below(tmp_path / "in" / "pipe") == below(tmp_path / "nowhere") == []


def test_looking_ends_at_the_bound_however_deep_the_files_lie(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    assert len(below(tmp_path, most=6)) == 3
    with pytest.raises(TooManyFiles):
        below(tmp_path, most=5)
    assert len(below(tmp_path, most_folders=4)) == 3
    with pytest.raises(TooManyFiles, match="more than 3 folders lie there"):
        below(tmp_path, most_folders=3)
