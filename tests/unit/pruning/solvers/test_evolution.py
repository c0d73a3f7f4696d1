from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_lab.pruning.solvers.evolution import Evolving, Site, Stage, State, total_cost


def squares(goal):
    """The squared distance to a goal, with noise that depends on the minibatch and is the same for all candidates."""

    def fitness(candidates, parent, tokens, draw):
        noise = float(np.random.default_rng([*draw, tokens]).random())
        return [sum((a - b) ** 2 for a, b in zip(each, goal, strict=True)) + noise for each in candidates]

    return fitness


def sites(number, levels=5, group=lambda index: index % 2):
    return [Site(f"site {index}", tuple(range(0, 10 * levels, 10)), group(index)) for index in range(number)]


STAGES = (Stage(8, 3), Stage(16, 1))


def test_it_finds_the_best_of_all_candidates_of_a_cost():
    """Brute force over 5^5 candidates, with a fitness in which sites do not add up."""
    five = sites(5, group=lambda index: 0)
    start = (2, 2, 2, 2, 2)

    def loss(candidate):
        a, b, c, d, e = candidate
        return (a - b - 1) ** 2 + (b * c - 3) ** 2 + abs(c - d) + (e - 1) ** 2

    best = min(loss(each) for each in product(range(5), repeat=5) if total_cost(five, each) == total_cost(five, start))
    search = Evolving(five, lambda pool, *_: [loss(each) for each in pool], STAGES, offspring=8)
    found = search.run(State(start), 200)
    assert loss(found.parent) == best < loss(start)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_child_costs_what_its_parent_does_and_has_levels_that_there_are(data):
    number = data.draw(st.integers(2, 8))
    steps = data.draw(st.lists(st.integers(1, 3), min_size=number, max_size=number))
    some = [
        Site(str(index), tuple(7 * index + step * level for level in range(data.draw(st.integers(1, 6)))), step)
        for index, step in enumerate(steps)
    ]
    parent = tuple(data.draw(st.integers(0, len(site.costs) - 1)) for site in some)
    search = Evolving(some, squares(parent), STAGES, offspring=12, flips=data.draw(st.integers(1, 5)))
    children = search.children(parent, np.random.default_rng(data.draw(st.integers(0, 2**32))))
    assert len(set(children)) == len(children) <= 12
    assert parent not in children
    for child in children:
        assert all(0 <= level < len(site.costs) for level, site in zip(child, some, strict=True))
        for step in {1, 2, 3}:
            of_group = [index for index, site in enumerate(some) if site.group == step]
            costs = [sum(some[i].costs[each[i]] for i in of_group) for each in (child, parent)]
            assert costs[0] == costs[1]


def test_steps_of_other_costs_are_not_exchanged():
    """One group, steps of 2 and of 3: nothing can move, and the search ends instead of drawing for ever."""
    uneven = [Site("a", (0, 2, 4)), Site("b", (0, 3, 6))]
    search = Evolving(uneven, squares((0, 0)), STAGES, offspring=4)
    assert search.children((1, 1), np.random.default_rng(0)) == []
    assert search.run(State((1, 1)), 10).history == []


def test_fewer_children_where_there_are_not_enough():
    """Two sites of two levels: the one other candidate of the cost is found once."""
    two = [Site("a", (0, 1)), Site("b", (0, 1))]
    search = Evolving(two, squares((0, 1)), STAGES, offspring=16)
    assert search.children((1, 0), np.random.default_rng(0)) == [(0, 1)]
    assert search.run(State((1, 0)), 3).parent == (0, 1)


def test_the_number_of_flips_is_the_smaller_of_two_draws():
    """P(1) = 5/9, P(2) = 3/9, P(3) = 1/9: with many sites a flip is hardly ever undone by the next."""
    many = sites(400, levels=9, group=lambda index: 0)
    parent, random = (4,) * 400, np.random.default_rng(0)
    search = Evolving(many, squares(parent), STAGES, offspring=1)
    moved = [sum(abs(a - 4) for a in search.mutate(parent, random)) // 2 for _ in range(2000)]
    shares = [moved.count(number) / len(moved) for number in (1, 2, 3)]
    assert shares == pytest.approx([5 / 9, 3 / 9, 1 / 9], abs=0.04)


def test_the_seed_decides():
    def run(seed):
        return Evolving(sites(6), squares((0, 4, 1, 3, 2, 2)), STAGES, 6, seed).run(State((2,) * 6), 6)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_an_interrupted_search_ends_as_one_that_was_not():
    search = Evolving(sites(6), squares((0, 4, 1, 3, 2, 2)), STAGES, 6, seed=3)
    seen = []
    whole = search.run(State((2,) * 6), 12, seen.append)
    assert [state.generation for state in seen] == list(range(1, 13))
    again = search.run(seen[4], 12)
    assert again == whole
    assert search.run(whole, 12) == whole


def test_all_candidates_of_a_stage_see_one_minibatch_and_the_parent_joins_the_last():
    calls = []

    def fitness(candidates, parent, tokens, draw):
        calls.append((len(candidates), tokens, draw, parent in candidates))
        return [float(index) for index in range(len(candidates))]  # the parent comes first, and wins

    found = Evolving(sites(8), fitness, (Stage(4, 5), Stage(8, 2), Stage(32, 1)), 9).run(State((2,) * 8), 2)
    assert calls[:3] == [(9, 4, (0, 0), False), (5, 8, (0, 1), False), (3, 32, (0, 2), True)]
    assert [draw for _, _, draw, _ in calls] == [(n, s) for n in range(2) for s in range(3)]
    assert found.parent == (2,) * 8
    assert not found.history[1].improved
    assert (found.history[1].evaluations, found.history[1].tokens) == (34, 2 * (9 * 4 + 5 * 8 + 3 * 32))


def test_the_parent_stays_unless_a_child_is_better_in_the_last_stage():
    """A fault of a child is that it wins the first stage and not the last."""
    parent = (2,) * 4

    def fitness(candidates, _parent, tokens, _draw):
        return [-1.0 if tokens == 8 else float(each != parent) for each in candidates]

    found = Evolving(sites(4), fitness, STAGES, 4).run(State(parent), 5)
    assert found.parent == parent


def test_a_loss_that_is_no_number_never_wins():
    def fitness(candidates, _parent, _tokens, _draw):
        return [float("nan")] + [float(sum(each[:1])) for each in candidates[1:]]

    found = Evolving(sites(4), fitness, (Stage(1, 1),), 4).run(State((2,) * 4), 1)
    assert found.parent != (2,) * 4
    assert found.history[0].improved
