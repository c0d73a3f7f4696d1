import tempfile
from pathlib import Path

import pytest

from prune_lab.cache.folder import cache_folder


def test_the_users_own_choice_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "mine"
    assert (tmp_path / "mine").is_dir()


def test_without_one_it_lies_where_caches_lie(tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNE_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "prune_lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "prune_lab"


def test_a_folder_that_cannot_be_made_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.is_dir()


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cache_folder().parent == tmp_path / "temporary"


@pytest.fixture(autouse=True)
def no_other_temporary_folder(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
