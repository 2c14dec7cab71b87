"""The sequential test: its exact characteristic, its guarantee, and what it costs."""

from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dto.errors import DtoError, RecipeError
from dto.recipe import make_recipe
from dto.sequential import MOST_BOUNDARIES, SequentialTest, share

DEFAULT = (0.75, 0.10, 0.05, 32)


def followed(test, outcomes):
    """The decision on one sequence of outcomes, looking after every trial."""
    successes = 0
    for trials, outcome in enumerate((None, *outcomes)):
        successes += bool(outcome)
        decision = test.decide(successes, trials)
        if decision is not None:
            return decision, trials
    raise AssertionError("no decision at the cap")


@pytest.mark.parametrize(
    "parameters", [(0.75, 0.1, 0.3, 10), (0.5, 0.2, 0.2, 9), (0.9, 0.2, 0.25, 8)]
)
@pytest.mark.parametrize("p", [0.0, 0.2, 0.65, 0.85, 1.0])
def test_the_characteristic_is_that_of_all_sequences(parameters, p):
    test = SequentialTest(*parameters)
    chances = {"above": 0.0, "below": 0.0, "undecided": 0.0}
    cost = 0.0
    for outcomes in product((0, 1), repeat=test.cap):
        chance = p ** sum(outcomes) * (1 - p) ** (test.cap - sum(outcomes))
        decision, trials = followed(test, outcomes)
        chances[decision] += chance
        cost += chance * trials
    found = test.characteristic(p)
    assert found[:3] == pytest.approx(tuple(chances.values()), abs=1e-12)
    assert found.trials == pytest.approx(cost)


PARAMETERS = st.tuples(
    st.floats(0.3, 0.9),
    st.floats(0.05, 0.25),
    st.sampled_from([0.01, 0.05, 0.1, 0.2]),
    st.integers(12, 40),
)


def built(parameters):
    try:
        return SequentialTest(*parameters)
    except DtoError:
        assume(False)
        raise


@settings(max_examples=25)
@given(PARAMETERS, st.floats(0, 1))
def test_the_guarantee_holds_everywhere_outside_the_zone(parameters, share):
    test = built(parameters)
    assert test.characteristic(test.low * share).above <= test.error
    assert test.characteristic(test.high + (1 - test.high) * share).below <= test.error


@pytest.mark.slow
@settings(max_examples=25)
@given(PARAMETERS, st.floats(0, 1), st.floats(0, 1))
def test_a_better_chance_never_passes_less(parameters, p, q):
    test = built(parameters)
    low, high = sorted((p, q))
    assert test.characteristic(low).above <= test.characteristic(high).above + 1e-12


@settings(max_examples=25)
@given(PARAMETERS, st.lists(st.booleans(), min_size=40, max_size=40))
def test_looking_only_when_a_decision_is_possible_changes_nothing(parameters, outcomes):
    test = built(parameters)
    outcomes = outcomes[: test.cap]
    trials = successes = 0
    while (decision := test.decide(successes, trials)) is None:
        wait = test.rounds_to_decision(successes, trials)
        assert wait >= 1
        trials += wait
        successes = sum(outcomes[:trials])
    assert (decision, trials) == followed(test, outcomes)
    assert test.rounds_to_decision(successes, trials) == 0


def test_the_wait_is_the_shortest():
    test = SequentialTest(0.75, 0.1, 0.1, 12)
    for trials in range(13):
        for successes in range(trials + 1):
            reachable = [
                extra
                for extra in range(13 - trials)
                for more in range(extra + 1)
                if test.decide(successes + more, trials + extra) is not None
            ]
            assert test.rounds_to_decision(successes, trials) == min(reachable)


def test_the_default_is_cheap_where_it_is_easy():
    test = SequentialTest(*DEFAULT)
    assert test.rounds_to_decision(0, 0) == 3
    assert [test.decide(0, n) for n in (2, 3)] == [None, "below"]
    assert [test.decide(n, n) for n in (9, 10)] == [None, "above"]
    assert test.characteristic(0.02).trials < 3.2
    assert test.characteristic(0.98).trials < 11
    # the best that the cap leaves: tighter boundaries on either side break an error
    assert 0.03 < test.characteristic(0.65).above <= 0.05
    assert 0.03 < test.characteristic(0.85).below <= 0.05


def test_undecided_is_said_as_soon_as_a_pass_is_out_of_reach():
    test = SequentialTest(*DEFAULT)
    stops = [
        (successes, trials)
        for trials in range(33)
        for successes in range(trials + 1)
        if test.decide(successes, trials) == "undecided"
    ]
    assert (26, 32) in stops
    assert min(trials for _, trials in stops) < 32
    for successes, trials in stops:
        assert all(
            test.decide(successes + more, trials + more) != "above" for more in range(33 - trials)
        )


@pytest.mark.parametrize("threshold", [0.0, 0.95, 1.0])
def test_a_zone_at_the_edge_is_cut(threshold):
    test = SequentialTest(threshold, 0.1, 0.05, 64)
    assert 0 < test.low < test.high < 1
    assert test.characteristic(test.low).above <= 0.05
    assert test.characteristic(test.high).below <= 0.05


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ((0.75, 0.0, 0.05, 32), "margin 0.0"),
        ((1.5, 0.1, 0.05, 32), "threshold 1.5"),
        ((0.75, 0.1, 0.0, 32), "error 0.0"),
        ((0.75, 0.1, 0.5, 32), "error 0.5"),
        ((0.75, 0.1, 0.05, 0), "cap 0"),
        ((0.75, 0.1, 0.05, 5), "raise cap or error"),
    ],
)
def test_parameters_out_of_range(parameters, named):
    with pytest.raises(DtoError, match=named):
        SequentialTest(*parameters)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 2), (3, 2), (1, 33)])
def test_counts_out_of_range(successes, trials):
    with pytest.raises(ValueError, match="cap 32"):
        SequentialTest(*DEFAULT).decide(successes, trials)


FLAT = 24  # boundaries of a real trajectory, the median


def scanned(errors, cap, p):
    """Chance that a scan of as many boundaries, all at p, passes anywhere, and its mean cost."""
    going, cost = 1.0, 0.0
    for error in errors:
        above, _, _, trials = SequentialTest(0.75, 0.1, 0.05, cap, error).characteristic(p)
        cost += going * trials
        going *= 1 - above
    return 1 - going, cost


@pytest.mark.slow
def test_the_stated_error_is_that_of_one_boundary_and_the_scan_has_its_own():
    assert scanned([0.05] * FLAT, 32, 0.65)[0] == pytest.approx(0.70, abs=0.01)
    for boundaries in (1, 2, 5, FLAT, 100):
        for error_scan in (0.01, 0.05, 0.2):
            each = min(0.05, share(error_scan, boundaries))
            for p in (0.3, 0.6, 0.65):
                assert scanned([each] * boundaries, 32, p)[0] <= error_scan
    assert scanned([share(0.05, FLAT)] * FLAT, 32, 0.65)[0] > 0.04, "little is wasted"


@given(st.floats(0.001, 0.5), st.integers(1, MOST_BOUNDARIES))
def test_shares_add_up_to_no_more_than_the_whole(error_scan, boundaries):
    each = share(error_scan, boundaries)
    whole = 1 - (1 - each) ** boundaries
    assert whole <= error_scan * (1 + 1e-9)
    assert whole >= error_scan * 0.6
    assert share(error_scan, boundaries + 1) <= each


def test_an_error_of_its_own_for_a_pass():
    strict = SequentialTest(0.75, 0.1, 0.05, 48, 0.002)
    assert strict.characteristic(0.65).above <= 0.002
    assert 0.03 < strict.characteristic(0.85).below <= 0.05
    same, plain = SequentialTest(*DEFAULT, 0.05), SequentialTest(*DEFAULT)
    assert same.boundaries == plain.boundaries
    with pytest.raises(DtoError, match="raise cap or error"):
        SequentialTest(0.75, 0.1, 0.05, 12, 0.001)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"error_scan": 0.05, "cap": 20}, "takes 22 successes in a row .* cap is 20"),
        ({"error_scan": 0.05, "threshold": 0.9}, "cap is 32: raise cap or error_scan"),
        ({"error_scan": 0.05, "method": "fixed"}, "method sequential"),
        ({"error_scan": 0.0}, "greater than 0"),
        ({"error_scan": 1.0}, "less than 1"),
    ],
)
def test_a_scan_error_that_no_test_can_have(settings, named):
    with pytest.raises(RecipeError, match=named) as raised:
        make_recipe({"name": "r", "estimate": settings})
    assert "\n" not in str(raised.value)
    make_recipe({"name": "r", "estimate": {"error_scan": 0.05, "threshold": 0.9, "cap": 42}})


@pytest.mark.slow
def test_the_share_of_a_stopped_test_is_biased_most_of_all_where_it_passed():
    """By enumeration of all stops: why `verified_p` does not come from the test that passed."""

    def means(p):
        test = SequentialTest(*DEFAULT)
        reach, stops = {(0, 0): 1.0}, []
        while reach:
            (successes, trials), chance = reach.popitem()
            decision = test.decide(successes, trials)
            if decision is not None:
                stops.append((decision, successes / trials, chance))
                continue
            for more, q in ((1, p), (0, 1 - p)):
                state = (successes + more, trials + 1)
                reach[state] = reach.get(state, 0.0) + chance * q
        whole = sum(share * chance for _, share, chance in stops)
        passed = [(share, chance) for decision, share, chance in stops if decision == "above"]
        given_above = sum(share * chance for share, chance in passed)
        return whole, given_above / sum(chance for _, chance in passed)

    for p, biased in ((0.70, 0.91), (0.80, 0.91), (0.85, 0.92)):
        _, above = means(p)
        assert above == pytest.approx(biased, abs=0.012)
        assert above - p > 0.06
