"""Hub models, from a cache that was filled beforehand: nothing here goes beyond this machine."""

import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.hf_api import api as hf_api
from safetensors.torch import load_file

from prune_lab.errors import BadInput
from prune_lab.models.load import REFERENCE, Checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The cache of a repository ``org/small`` that has its weights only as ``torch.save`` writes them."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--small"
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(REFERENCE / "opt", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def hub(**settings):
    return Checkpoint("org/small", kind="hub", **settings)


def test_a_model_of_the_cache_loads_offline_with_pickled_weights_alone(snapshot):
    checkpoint = hub()
    assert (checkpoint.name, checkpoint.folder) == ("small", snapshot)
    assert checkpoint.load_config().model_type == "opt"
    model = checkpoint.load(checkpoint.load_tokenizer())
    shipped = Checkpoint("opt", kind="reference").load()
    assert all(torch.equal(tensor, shipped.hf.state_dict()[name]) for name, tensor in model.hf.state_dict().items())
    assert model.tokenizer("a b")["input_ids"]


def test_safetensors_are_taken_where_there_are_both(snapshot):
    (snapshot / "pytorch_model.bin").write_bytes(b"damaged")
    shutil.copy(REFERENCE / "opt" / "model.safetensors", snapshot)
    assert hub().load().blocks


def test_what_is_checked_of_a_folder_is_checked_of_the_cache_under_the_name_that_was_typed(snapshot, change_config):
    change_config(snapshot, num_hidden_layers=2)
    assert hub().load_config().num_hidden_layers == 2  # the weights may not be there yet
    with pytest.raises(BadInput, match=r"Checkpoint\.path=org/small: config\.json says num_hidden_layers=2, and"):
        hub().load()


def test_weights_that_the_cache_lacks_are_told(snapshot):
    (snapshot / "pytorch_model.bin").unlink()
    with pytest.raises(
        BadInput, match=r"path=org/small: cannot have the weights from the hub or its cache: .*model=local"
    ):
        hub().load()


@pytest.mark.parametrize("settings", [{"path": "org/other"}, {"path": "org/small", "revision": "v2"}])
def test_a_repository_or_revision_that_the_cache_lacks_is_told(snapshot, settings):
    with pytest.raises(BadInput, match=r"cannot have the configuration .*the revision, the network"):
        Checkpoint(**settings, kind="hub").load_config()


@pytest.mark.parametrize("path", ["/some/folder", "a/b/c", "../x", "a b", "~/model", "x" * 300])
def test_a_path_is_no_name_of_the_hub(path):
    with pytest.raises(BadInput, match=r"is not a name on the hub.*use\s+model=local"):
        Checkpoint(path, kind="hub")


def test_a_folder_that_has_the_repositorys_name_is_not_taken_for_it(snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REFERENCE / "llama", tmp_path / "org" / "small")
    assert hub().load_config().model_type == "opt"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on this machine that refuses everything with ``answer``, and notes the tokens that it was shown."""

    class Refusing(BaseHTTPRequestHandler):
        answer: ClassVar = (401, {"X-Error-Code": "GatedRepo"})
        tokens: ClassVar = []

        def refuse(self):
            self.tokens.append(self.headers.get("Authorization"))
            status, headers = self.answer
            self.send_response(status)
            for name, value in {**headers, "X-Error-Message": "no", "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_HEAD = refuse

        def log_message(self, *_):
            pass

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with HTTPServer(("127.0.0.1", 0), Refusing) as local:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{local.server_port}")
        monkeypatch.setattr(hf_api, "endpoint", constants.ENDPOINT)
        url = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        thread = Thread(target=local.serve_forever)
        thread.start()
        yield Refusing
        local.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (
            403,
            "GatedRepo",
            r"Accept its terms at https://huggingface\.co/org/small, if it has any, and give a token .*hf auth login",
        ),
        (
            401,
            "GatedRepo",
            r"Accept its terms at https://huggingface\.co/org/small, if it has any, and give a token .*HF_TOKEN",
        ),
        (401, "RepoNotFound", r"If it is private, give a token that may read it: hf auth login, or .*HF_TOKEN"),
        (403, "", r"give a token that may read it"),
    ],
)
def test_who_has_no_access_is_told_how_to_get_it(server, status, code, words):
    server.answer = (status, {"X-Error-Code": code} if code else {})
    with pytest.raises(BadInput, match=r"cannot have the configuration .*" + words):
        hub().load_config()


def test_the_token_is_that_of_the_environment_or_of_the_login(server, tmp_path, monkeypatch):
    server.tokens.clear()
    for token in (None, "hf_file", "hf_variable"):
        if token == "hf_file":
            (tmp_path / "token").write_text(token)
        if token == "hf_variable":
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(BadInput):
            hub().load_config()
        assert server.tokens[-1] == (token and f"Bearer {token}")
