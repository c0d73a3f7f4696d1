import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from prune_lab.errors import BadInput
from prune_lab.sweep.search.space import parse_space


def parse(*arguments, params=None):
    return parse_space(params or {}, arguments, OverridesParser.create())


@pytest.mark.parametrize(
    ("value", "distribution"),
    [
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("tag(log,interval(1e-5,1e-2))", FloatDistribution(1e-5, 1e-2, log=True)),
        ("int(interval(1,10))", IntDistribution(1, 10)),
        ("tag(int,interval(1.5,10.5))", IntDistribution(2, 10)),
        ("tag(int,log,interval(1,100))", IntDistribution(1, 100, log=True)),
        ("range(50,200,step=50)", IntDistribution(50, 150, step=50)),  # the end is no part of it, as in a grid
        ("range(1,5)", IntDistribution(1, 4)),
        ("range(10,0,-4)", IntDistribution(2, 10, step=4)),
        ("tag(log,range(1,100))", IntDistribution(1, 99, log=True)),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("range(0,0.3,0.1)", FloatDistribution(0, 0.2, step=0.1)),
        ("tag(float,range(1,5))", FloatDistribution(1, 4, step=1)),
        ("choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("a,b", CategoricalDistribution(["a", "b"])),
        ("1,0.5,true,null,[0,12]", CategoricalDistribution(["1", "0.5", "True", "null", "[0,12]"])),
    ],
)
def test_sweeps_become_distributions(value, distribution):
    assert parse(f"key={value}").searched == {"key": distribution}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("shuffle(a,b)", "shuffle has no meaning"),
        ("shuffle(range(1,5))", "shuffle has no meaning"),
        ("glob(*)", "glob cannot be searched"),
        ("tag(sqrt,interval(0,1))", "tag sqrt is not understood"),
        ("tag(log,choice(1,2))", "tag log is not understood"),
        ("tag(int,float,interval(0,1))", "tag float, int is not understood"),
        ("tag(log,interval(0,1))", "log needs numbers above 0"),
        ("interval(2,1)", "no number lies between 2 and 1"),
        ("tag(int,interval(0.2,0.8))", "no number lies between"),
        ("range(3,3)", "no number in this range"),
        ("tag(log,range(1,9,2))", "log and a step exclude each other"),
        ("tag(int,range(0,2,0.5))", "cannot be 0.5 apart"),
        ("a,a", "a choice is there twice"),
    ],
)
def test_what_has_no_meaning_is_refused(value, words):
    with pytest.raises(BadInput, match=words) as refused:
        parse(f"key={value}")
    assert str(refused.value).startswith(f"key={value}")


def test_nothing_to_search_is_refused():
    with pytest.raises(BadInput, match="nothing to search"):
        parse("seed=3")


def test_all_else_is_fixed_and_stays_as_it_was_written():
    space = parse("seed=3", "x=1,2", "~method", "+a.b='c d'", "method@method.inner=wanda", "path='[x]'")
    assert space.fixed == ("seed=3", "~method", "+a.b='c d'", "method@method.inner=wanda", "path='[x]'")
    assert space.overrides({"x": "2"})[-1] == "x=2"


def test_the_command_line_wins_over_the_experiment():
    params = {"x": "interval(0,1)", "y": "1,2", "z": 5, "w": None}
    space = parse("x=range(0,4)", "y=3", params=params)
    assert space.searched == {"x": IntDistribution(0, 3)}
    assert set(space.fixed) == {"y=3", "z=5", "w=null"}


def test_values_come_back_as_overrides_that_are_read_alike():
    space = parse("x=tag(log,interval(1e-7,1e-6))", "c='a b',[0,12],null", "+n=1,2")
    text = space.overrides({"x": 3.25e-07, "c": "'a b'", "+n": "1"})
    parsed = [override.value() for override in OverridesParser.create().parse_overrides(text)]
    assert parsed == [3.25e-07, "a b", 1]
    assert text[2].startswith("+n=")


BASE = OmegaConf.create(
    {
        "lr": 0.01,
        "steps": 100,
        "flag": True,
        "name": "a b",
        "none": None,
        "hydra": {"runtime": {"choices": {"m": "gum"}}},
    }
)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr=interval(0,1)", 0.01),
        ("lr=interval(0.1,1)", None),
        ("steps=range(50,200,step=50)", 100),
        ("steps=range(50,100,step=50)", None),
        ("steps=range(60,200,step=50)", None),
        ("lr=range(0,1,0.01)", 0.01),
        ("lr=int(interval(0,1))", None),
        ("flag=true,false", "True"),
        ("flag=1,2", None),
        ("name='a b',c", "'a b'"),
        ("none=null,3", "null"),
        ("m=wanda,gum", "gum"),
        ("m=wanda,magnitude", None),
        ("+new=1,2", None),
        ("flag=interval(0,2)", None),
    ],
)
def test_defaults_are_known_where_they_lie_in_the_space(argument, value):
    space = parse(argument)
    found = space.defaults(BASE)
    assert found == (None if value is None else {argument.partition("=")[0]: value})
    if found:
        assert space.searched[argument.partition("=")[0]]._contains(
            space.searched[argument.partition("=")[0]].to_internal_repr(value)
        )
