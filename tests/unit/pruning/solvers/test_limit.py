"""Candidates of a search that stay within a limit."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_lab.pruning.solvers.evolution import Evolving, Site, Stage, State
from prune_lab.pruning.solvers.limit import Limit


def total(limit, levels):
    return sum(each[level] for each, level in zip(limit.spent, levels, strict=True))


@st.composite
def limits(draw):
    """Seconds that need not fall from level to level, or what need not rise, and a parent that fits."""
    seconds = st.floats(0, 10, allow_subnormal=False)
    spent = draw(st.lists(st.lists(seconds, min_size=1, max_size=5), min_size=1, max_size=7))
    parent = tuple(draw(st.integers(0, len(each) - 1)) for each in spent)
    most = total(Limit(spent, 0.0), parent) + draw(st.floats(0, 3))
    return Limit(spent, most, draw(st.sampled_from([1, -1]))), parent


@settings(max_examples=200, deadline=None)
@given(limits(), st.integers(1, 4), st.integers(0, 2**32))
def test_every_copy_fits(drawn, moves, seed):
    limit, parent = drawn
    assert limit.fits(parent)
    child = limit.mutate(parent, moves, np.random.default_rng(seed))
    assert all(0 <= level < len(each) for level, each in zip(child, limit.spent, strict=True))
    assert limit.fits(child)
    assert child == limit.mutate(parent, moves, np.random.default_rng(seed))


def test_a_large_step_is_exchanged_for_several_small_ones_and_back():
    """One head takes as long as four steps of neurons."""
    limit = Limit([[8.0, 4.0, 0.0], *[[4.0, 3.0, 2.0, 1.0, 0.0]] * 4], 12.0)
    parent = (1, 2, 2, 2, 2)
    children = {limit.mutate(parent, 1, np.random.default_rng(seed)) for seed in range(60)}
    assert {child[0] for child in children} == {0, 1, 2}
    assert {total(limit, child) for child in children} == {12.0}  # nothing is left over where all steps divide it


def test_it_is_the_same_of_what_goes_as_of_what_stays():
    """Four parameters for a head, one for a step of neurons: what is removed is exchanged as seconds are."""
    limit = Limit([[0.0, 4.0, 8.0], *[[0.0, 1.0, 2.0, 3.0, 4.0]] * 4], 12.0, saving=-1)
    children = {limit.mutate((1, 2, 2, 2, 2), 1, np.random.default_rng(seed)) for seed in range(60)}
    assert {child[0] for child in children} == {0, 1, 2}
    assert {total(limit, child) for child in children} == {12.0}


def test_the_search_within_a_limit_finds_the_best_candidate_that_brute_force_finds():
    spent = [[6.0, 3.0, 0.0], [3.0, 2.5, 1.0, 0.0], [2.0, 1.0, 0.5], [4.0, 1.0]]
    limit, weights = Limit(spent, 8.0), (5, 3, 4, 7)

    def loss(candidate):
        return sum(weight * level**1.5 for weight, level in zip(weights, candidate, strict=True))

    every = [each for each in product(*(range(len(each)) for each in spent)) if limit.fits(each)]
    sites = [Site(str(index), tuple(range(len(each)))) for index, each in enumerate(spent)]
    search = Evolving(
        sites, lambda pool, *_: [loss(each) for each in pool], (Stage(4, 3), Stage(8, 1)), offspring=8, limit=limit
    )
    found = search.run(State((2, 1, 1, 1)), 60)
    assert loss(found.parent) == min(map(loss, every)) < loss((2, 1, 1, 1))


def test_where_the_others_cannot_save_enough_the_parent_stays():
    limit = Limit([[2.0, 0.0], [1.0]], 1.5)
    assert {limit.mutate((1, 0), 2, np.random.default_rng(seed)) for seed in range(20)} == {(1, 0)}
