import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prune_lab.errors import BadInput
from prune_lab.sweep.size import check_size


def check(*overrides: str) -> None:
    """As the sweeper does."""
    check_size(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=range(0,10000)", "method=wanda"),
        ("seed=range(0,100)", "data.samples=choice(1,2)", "sparsity.level=range(0,1,0.02)"),  # 100 x 2 x 50
        ("seed=range(0,10000)", "seed=range(10000,0,-1)"),  # the last one counts
        ("method=glob(*)", "seed=3"),
    ],
)
def test_sweeps_that_can_be_run(overrides):
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("seed=range(0,10001)",), r"seed=range\(0,10001\): that are more than 10000 jobs"),
        (("seed=shuffle(range(99999999999))",), "more than 10000 jobs"),
        (("sparsity.level=range(0,1,1e-9)",), "more than 10000 jobs"),
        (("seed=range(0,101)", "data.samples=1,2", "training.lr=range(0,1,0.02)"), "101 x 2 x 50: that are more"),
        (("seed=range(5,5)",), r"seed=range\(5,5\): there is no number in this range"),
        (("seed=range(0,5,0)",), "there is no number in this range"),
        (("seed=range(0,5,-1)",), "there is no number in this range"),
    ],
)
def test_sweeps_that_cannot(overrides, words):
    with pytest.raises(BadInput, match=words):
        check(*overrides)
