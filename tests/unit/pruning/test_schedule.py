import pytest

from prune_lab.errors import BadInput
from prune_lab.pruning.schedule import AGP, Cubic, Linear, OneShot


def kept(schedule, step, steps, final):
    return 1 - (1 - final) * schedule.reached(step, steps)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),
        (10, 1.0),  # the warm-up, its last step included
        (11, 0.5 + 0.5 * (59 / 60) ** 3),
        (40, 0.5 + 0.5 * 0.5**3),
        (70, 0.5),
        (71, 0.5),
        (99, 0.5),
    ],
)
def test_the_cubic_schedule_is_that_of_movement_pruning(step, expected):
    """v_f + (1 - v_f) (1 - (step - w) / (total - 4 w))^3 with w = 10 of 100 steps."""
    assert kept(Cubic(), step, 100, 0.5) == pytest.approx(expected)


def test_the_others_by_hand():
    assert [OneShot(0.2).reached(step, 10) for step in range(4)] == [0, 0, 1, 1]
    assert Linear(0.0, 0.5).reached(2, 8) == pytest.approx(0.5)
    agp = AGP(0.0, 0.0, every=4)
    assert agp.reached(3, 8) == 0.0
    assert agp.reached(4, 8) == agp.reached(7, 8) == pytest.approx(1 - 0.5**3)


@pytest.mark.parametrize("schedule", [OneShot(), Linear(), Cubic(), AGP()], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_sparsity_never_falls_and_the_last_step_reaches_it(schedule, steps):
    reached = [schedule.reached(step, steps) for step in range(steps)]
    assert reached == sorted(reached)
    assert all(0 <= share <= 1 for share in reached)
    if steps >= 7:
        assert reached[-1] == 1.0


@pytest.mark.parametrize("make", [lambda: Cubic(0.5, 0.5), lambda: OneShot(1.0), lambda: AGP(every=0)])
def test_bad_shares_are_refused(make):
    with pytest.raises(BadInput, match=r"Cubic\.warmup=0\.5 and Cubic\.cooldown|OneShot\.begin=1\.0|AGP\.every=0"):
        make()


@pytest.mark.parametrize(
    ("warmup", "cooldown", "steps"), [(0.1, 0.3, 40), (0.0, 0.0, 5), (0.25, 0.5, 9), (0.3, 0.6, 3), (0.25, 0.5, 4)]
)
@pytest.mark.parametrize("power", [1.0, 3.0])
def test_between_warm_up_and_cool_down_it_grows_by_its_power(warmup, cooldown, steps, power):
    first, last = int(warmup * steps), steps - int(cooldown * steps)
    for step in range(steps):
        way = 0.0 if step <= first else min(1.0, (step - first) / (last - first))
        assert Linear(warmup, cooldown, power).reached(step, steps) == pytest.approx(1 - (1 - way) ** power)


def test_changes_come_every_so_many_steps_and_the_cool_down_on_time():
    agp, cubic = AGP(0.1, 0.25, every=8), Cubic(0.1, 0.25)
    assert [agp.reached(step, 40) for step in range(30)] == [cubic.reached(step // 8 * 8, 40) for step in range(30)]
    assert [agp.reached(step, 40) for step in range(30, 40)] == [1.0] * 10
