import json

import pytest

from prune_lab.errors import BadInput
from prune_lab.models.load import Checkpoint
from prune_lab.models.origin import ORIGIN, Origin, is_changed, read_origin, write_origin

WANDA = Origin("small", ("Wanda, 60% unstructured",), {"key": "k", "identity": None}, {"model": "small"})


@pytest.fixture
def saved(model_folder):
    folder = model_folder()
    write_origin(folder, WANDA)
    return folder


def test_a_folder_that_says_what_it_is_is_called_that(saved):
    assert read_origin(saved) == WANDA
    assert Checkpoint(str(saved)).name == "small (Wanda, 60% unstructured)"
    assert Checkpoint(str(saved), name="mine").name == "mine"
    assert Checkpoint(str(saved)).load().name == "small (Wanda, 60% unstructured)"


def test_steps_follow_each_other_and_nothing_is_no_step():
    assert WANDA.after("LoRA").after("").name == "small (Wanda, 60% unstructured; LoRA)"
    assert Origin("small").name == "small"


@pytest.mark.parametrize("what", ["weights", "configuration"])
def test_a_model_that_was_changed_since_is_not_called_what_it_was(saved, change_weights, change_config, what):
    if what == "weights":
        change_weights(saved, lambda tensors: tensors["model.decoder.final_layer_norm.weight"].mul_(2))
    else:
        change_config(saved, initializer_range=0.5)
    assert is_changed(saved)
    checkpoint = Checkpoint(str(saved))
    assert checkpoint.load().name == "small (Wanda, 60% unstructured; changed since)"
    assert checkpoint.origin.told()["model"] == "small (Wanda, 60% unstructured; changed since)"


def test_a_copy_of_the_folder_is_the_same_model(saved):
    assert not is_changed(saved.rename(saved.with_name("moved")))


def test_names_that_cannot_be_read_back_are_not_written(saved):
    write_origin(saved, Origin("a\nb" + "c" * 500, ("x",) * 80))
    assert read_origin(saved).model.startswith("a bccc")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"model": 5, "steps": []}', json.dumps({"model": "a", "steps": ["\u001b[31m"]})],
)
def test_a_damaged_file_is_refused_with_what_to_do(saved, content):
    (saved / ORIGIN).write_text(content)
    with pytest.raises(BadInput, match=rf"{ORIGIN}.*is damaged; copy it again, or delete it"):
        Checkpoint(str(saved))
