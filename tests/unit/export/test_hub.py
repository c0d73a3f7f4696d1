"""What is asked of the hub, by a stand-in for its client, and what its errors are told as."""

import inspect
from fnmatch import fnmatch
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from prune_lab.errors import BadInput, RunFailed
from prune_lab.export.command import main
from prune_lab.export.hub import Place, check_place, push

TOKEN = "hf_a-token-of-a-test"


class FakeApi:
    """Answers as the hub does, and keeps what it is asked."""

    def __init__(self, *, files=None, fails_at=None, error=None):
        self.files, self.fails_at, self.error, self.asked = files, fails_at, error, []

    def __getattr__(self, name):
        def call(*args, **settings):
            self.asked.append((name, args, settings))
            if name == self.fails_at:
                raise self.error
            return {
                "repo_exists": self.files is not None,
                "list_repo_files": self.files,
                "list_repo_refs": SimpleNamespace(branches=[SimpleNamespace(name=each) for each in ("main", "v1")]),
                "create_repo": "https://huggingface.co/me/model",
            }.get(name)

        return call

    def names(self):
        return [name for name, *_ in self.asked]


def answer(status):
    """An error of the client, which takes responses of one or another library, by its version."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} from the hub for the token {TOKEN}")
    error.response = type("Response", (), {"status_code": status})()
    return error


class ConnectError(Exception):
    __module__ = "httpx"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def test_a_new_repository_is_made_and_filled_in_one_commit(tmp_path):
    api = FakeApi()
    place = Place("me/model", private=True)
    check_place(place, api)
    assert api.names() == ["whoami", "repo_exists"]
    assert push(tmp_path, place, "Add the model", api) == "https://huggingface.co/me/model"
    calls = {name: (args, settings) for name, args, settings in api.asked}
    assert calls["create_repo"] == (("me/model",), {"private": True, "exist_ok": True})
    uploaded = calls["upload_folder"][1]
    assert (uploaded["repo_id"], uploaded["folder_path"], uploaded["revision"]) == ("me/model", tmp_path, None)
    assert uploaded["commit_message"] == "Add the model" and "create_branch" not in calls


@pytest.mark.parametrize("branch", ["main", "v1"])
def test_a_branch_that_holds_files_is_replaced_only_if_asked_for(tmp_path, branch):
    api = FakeApi(files=["README.md", "model.safetensors"])
    with pytest.raises(BadInput, match=f"its branch {branch} is there and holds files"):
        push(tmp_path, Place("me/model", revision=branch), "Add", api)
    assert "upload_folder" not in api.names()
    push(tmp_path, Place("me/model", revision=branch, update=True), "Add", api)
    assert api.asked[-1][2]["revision"] == branch


def test_a_branch_is_made_for_a_revision(tmp_path):
    api = FakeApi(files=["model.safetensors"])
    push(tmp_path, Place("me/model", revision="v2"), "Add", api)
    assert ("create_branch", ("me/model",), {"branch": "v2", "exist_ok": True}) in api.asked
    assert api.asked[-1][2]["revision"] == "v2"


@pytest.mark.parametrize("what", [check_place, lambda place, api: push(None, place, "Add", api)])
def test_a_repository_with_files_is_replaced_only_where_that_is_asked_for(what):
    api = FakeApi(files=[".gitattributes", "README.md"])
    with pytest.raises(
        BadInput,
        match=r"the repository is there and holds files; .*--revision.*--update",
    ):
        what(Place("me/model"), api)
    assert "create_repo" not in api.names() and "upload_folder" not in api.names()
    what(Place("me/model", update=True), api)
    what(Place("me/model"), FakeApi(files=[".gitattributes"]))  # an earlier try that was cut short


def test_shards_of_an_earlier_model_go_with_the_update():
    api = FakeApi(files=["model.safetensors"])
    push(None, Place("me/model", update=True), "Add", api)
    patterns = api.asked[-1][2]["delete_patterns"]
    old = [
        "model-00002-of-00003.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "old.gguf",
    ]
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in old)
    assert not any(fnmatch(name, pattern) for pattern in patterns for name in ("config.json", "README.md", "mine.py"))


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (answer(401), BadInput, "does not know this token .401.; hf auth login, or set HF_TOKEN"),
        (answer(403), BadInput, "may not write there .403.; give a token with the right to write to me"),
        (answer(404), BadInput, "there is no such place, or this token may not see it"),
        (answer(409), BadInput, "made or changed meanwhile .409."),
        (answer(500), RunFailed, "the hub has failed .500.: 500 from the hub for the token .*; try again later"),
        (ConnectError("Name or service not known"), RunFailed, "cannot be reached: Name or service not known"),
        (ConnectionError("no route"), RunFailed, "cannot be reached: no route; look at the network"),
        (LocalTokenNotFoundError("none"), BadInput, "there is no token for the hub"),
    ],
)
@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_errors_say_what_to_do_and_not_the_token(error, kind, told, call):
    with pytest.raises(kind, match=told) as raised:
        push(None, Place("me/model"), "Add", FakeApi(fails_at=call, error=error))
    assert TOKEN not in str(raised.value)


def test_without_a_token_it_is_told_at_once(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(BadInput, match="there is no token for the hub; hf auth login, or set HF_TOKEN"):
        check_place(Place("me/model"), api := FakeApi())
    assert api.names() == []


def test_faults_of_our_own_are_not_taken_for_the_networks():
    with pytest.raises(KeyError):
        push(None, Place("me/model"), "Add", FakeApi(fails_at="upload_folder", error=KeyError("x")))


def test_the_command_uploads_what_it_has_written(model_folder, tmp_path, monkeypatch, capsys):
    api = FakeApi(fails_at="upload_folder", error=answer(403))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    command = [str(model_folder()), str(tmp_path / "export"), "--push-to-hub", "me/model"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert f"{tmp_path / 'export'} is complete; the same command replaces it" in capsys.readouterr().err
    api.fails_at = None
    main(command)
    assert "uploaded: https://huggingface.co/me/model" in capsys.readouterr().out
    assert api.asked[-1][2]["folder_path"] == tmp_path / "export"
    assert "# model\n" in (tmp_path / "export/README.md").read_text()


def test_what_the_client_is_called_with_it_takes():
    """The stand-in takes anything; the real client has to have these parameters."""
    api = FakeApi()
    push(None, Place("me/model", private=True, revision="v2"), "Add", api)
    check_place(Place("me/model"), api)
    for name, args, settings in api.asked:
        inspect.signature(getattr(huggingface_hub.HfApi, name)).bind(None, *args, **settings)
