"""A package that is missing is told in one way, whoever needs it."""

import pytest

from prune_lab.errors import BadInput
from prune_lab.utils.extras import bringing, check_extra, not_installed

TOLD = "this needs nosuch, which is not installed; pip install 'prune-lab[slurm]'"


def test_all_say_it_alike():
    assert not_installed("this needs nosuch", "slurm") == TOLD
    assert not_installed("this needs nosuch", "slurm", "do without") == f"{TOLD}, or do without"
    with pytest.raises(BadInput) as told:
        check_extra("nosuch", "slurm", "this needs nosuch")
    assert str(told.value) == TOLD
    with pytest.raises(BadInput) as told, bringing("slurm", "this"):
        import nosuch  # noqa: F401
    assert str(told.value) == TOLD


def test_a_module_of_our_own_that_is_missing_is_an_error_of_ours():
    with pytest.raises(ModuleNotFoundError), bringing("slurm", "this"):
        import prune_lab.nosuch  # noqa: F401


def test_what_is_there_is_imported():
    with bringing("slurm", "this"):
        import json
    assert json
