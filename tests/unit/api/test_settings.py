"""Python values as the command's settings, and back."""

from pathlib import Path

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from prune_lab.api.settings import normal, overrides_of

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).filter(lambda text: "${" not in text)
)  # Hydra's own grammar of interpolations
values = st.recursive(plain, lambda below: st.lists(below, max_size=3), max_leaves=6)


@given(values)
def test_hydra_reads_the_value_that_was_given(value):
    (line,) = overrides_of(normal({"section__key": value}))
    (override,) = OverridesParser.create().parse_overrides([line])
    assert override.key_or_group == "section.key"
    assert not override.is_sweep_override()
    read = override.value()
    assert read == value and type(read) is type(value)


def test_other_kinds_of_values():
    given_values = {
        "a": Path("/x y"),
        "b": torch.bfloat16,
        "c": torch.device("cuda", 1),
        "d": {"k": [1, "v"]},
        "e": (1,),
    }
    assert overrides_of(given_values) == ["a='/x y'", "b=bfloat16", "c='cuda:1'", "d={k:[1,'v']}", "e=[1]"]
