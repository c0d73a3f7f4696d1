import os
import stat
import tempfile

import pytest

from prune_lab.cache.folder import cache_folder
from prune_lab.errors import BadInput


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
    monkeypatch.setenv("HOME", str(tmp_path))
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
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cache_folder() == cache_folder() == tmp_path / f"prune_lab-{os.getuid()}"
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


def test_without_a_home_there_is_a_cache_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", "~nobody-of-that-name/cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache_folder().name == f"prune_lab-{os.getuid()}"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_at_hand_may_be_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_LAB_CACHE", ".")
    monkeypatch.chdir(tmp_path)
    assert cache_folder().resolve() == tmp_path.resolve()


@pytest.mark.parametrize("wrong", ["link", "file", "permissions", "owner"])
def test_a_replacement_that_somebody_else_can_write_to_is_refused(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, other = tmp_path / f"prune_lab-{os.getuid()}", tmp_path / "other"
    other.mkdir(mode=0o700)
    if wrong == "link":
        folder.symlink_to(other)
    elif wrong == "file":
        folder.write_text("")
    elif wrong == "permissions":
        folder.mkdir()
        folder.chmod(0o750)
    else:
        monkeypatch.setattr("os.getuid", lambda: other.stat().st_uid + 1)
        (tmp_path / f"prune_lab-{os.getuid()}").mkdir(mode=0o700)
    with pytest.raises(BadInput, match="set PRUNE_LAB_CACHE"):
        cache_folder()
    assert not any(other.iterdir())


@pytest.fixture(autouse=True)
def no_other_temporary_folder(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
