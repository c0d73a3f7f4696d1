import json
import platform
import socket

import torch

from prune_lab.run.environment import describe_environment, package_versions


def test_the_versions_of_all_that_numbers_depend_on_are_known():
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert "missing" not in versions.values()


def test_a_package_that_is_not_there_is_called_missing(monkeypatch):
    monkeypatch.setattr("prune_lab.run.environment._PACKAGES", ("no-such-package",))
    assert package_versions()["no-such-package"] == "missing"


def test_the_description_is_plain_json_and_names_no_host():
    text = json.dumps(describe_environment(torch.device("cpu")))
    assert json.loads(text)["device"] == "cpu"
    assert json.loads(text)["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert json.loads(text)["threads"] == torch.get_num_threads() and type(json.loads(text)["amx"]) is bool
    assert type(json.loads(text)["avx512_bf16"]) is bool
    assert socket.gethostname() not in text
