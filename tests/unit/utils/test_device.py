import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.utils.device import resolve_device, watch_peak_memory


def machine(monkeypatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def test_auto_takes_the_first_gpu_if_there_is_one(monkeypatch):
    machine(monkeypatch, 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    machine(monkeypatch, 0)
    assert resolve_device("auto") == torch.device("cpu")


def test_a_device_can_be_chosen(monkeypatch):
    machine(monkeypatch, 2)
    assert [resolve_device(name) for name in ("cpu", "cuda", "cuda:1")] == [
        torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1),
    ]  # fmt: skip


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    machine(monkeypatch, 0)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(BadInput, match=rf"device={name}: .*no CUDA device.*device=cpu"):
            resolve_device(name)
    machine(monkeypatch, 2)
    with pytest.raises(BadInput, match="there are 2 CUDA devices"):
        resolve_device("cuda:2")


def test_several_processes_share_no_gpu(monkeypatch):
    machine(monkeypatch, 2)
    for rank in (0, 1):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda", rank)
        for index in (0, 1):  # in all of them, or some would wait for the others
            with pytest.raises(
                BadInput, match=rf"device=cuda:{index} is one GPU for all 2 processes.*use device=cuda,"
            ):
                resolve_device(f"cuda:{index}")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "cuda:²", "cuda:99999", "", None, 0])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(BadInput, match="allowed: auto, cpu, cuda, cuda:N"):
        resolve_device(name)


def test_the_peak_of_the_resident_memory_is_seen_after_it_was_given_back():
    peak = watch_peak_memory(torch.device("cpu"))
    before = peak()
    block = torch.ones(25_000_000)  # 100 MB
    del block
    assert before + 80 < peak() < before + 300
