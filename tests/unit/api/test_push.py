"""Results are saved with a card, and brought to the hub, by a stand-in for its client."""

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants

import prune_lab
from prune_lab.errors import BadInput


class FakeApi:
    """Keeps the files that it is given."""

    def __init__(self, holds=None):
        self.holds = holds
        self.uploaded = {}

    def whoami(self):
        return {}

    def repo_exists(self, name):
        return self.holds is not None

    def list_repo_files(self, name, revision=None):
        return self.holds

    def create_repo(self, name, **settings):
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, folder_path, **settings):
        self.uploaded = {path.name: path.read_bytes() for path in folder_path.iterdir()}


@pytest.fixture
def result(tiny_model, random_tokens):
    tokens = random_tokens(4)
    stages = ["dense", "prune", "evaluate"]
    model = tiny_model("llama").hf
    return prune_lab.prune(
        model, method="wanda", sparsity="2:4", data=(tokens, tokens), stages=stages, evaluate="perplexity"
    )


def test_what_is_saved_has_a_card(result, tmp_path):
    text = (result.save(tmp_path / "saved") / "README.md").read_text()
    card = ModelCard(text)
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert found["perplexity"] == result.metrics["evaluate/perplexity"]
    assert {"wanda", "2:4"} <= set(card.data.tags) and "cuSPARSELt" in text
    assert "A call in Python on a model in memory" in text and "/prune_lab-" not in text
    assert "prune-lab model=local" in text and "data.calibration=DIR/calibration" in text


def test_a_result_without_a_run_has_a_card_too(tiny_model, tmp_path):
    smaller = prune_lab.shrink(tiny_model("llama").hf)
    text = (smaller.save(tmp_path / "saved") / "README.md").read_text()
    assert "shrunk" in text and "## Results" not in text


def test_of_a_shrunk_result_it_says_when_it_was_measured(result, tmp_path):
    text = (prune_lab.shrink(result).save(tmp_path / "saved") / "README.md").read_text()
    assert "## Results" in text and "Measured before neurons, heads and blocks that are zero were taken out" in text


def test_a_result_is_brought_to_the_hub(result, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-a-test")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    api = FakeApi()
    assert result.push_to_hub("me/pruned") == "https://huggingface.co/me/pruned"
    assert {"README.md", "config.json", "model.safetensors", "prune_lab.json"} <= set(api.uploaded)
    assert b"# pruned\n" in api.uploaded["README.md"]
    api = FakeApi(holds=["README.md"])
    with pytest.raises(BadInput, match=r"^push_to_hub me/pruned: the repository is there .*revision=.*update="):
        result.push_to_hub("me/pruned")
    assert api.uploaded == {}
