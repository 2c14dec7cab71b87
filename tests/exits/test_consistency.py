from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest

from dto.grading import Grader
from dto.policies.settling import Consistency
from dto.records import Trial
from tests.exits.conftest import Embedded, Respond

MAIN = "One.\n\nTwo.\n\nThree.\n\nFour.\n\nFive.\n</think>\n\n\\boxed{2}"
EXIT = {"policy": "consistency", "monitor": "paragraph", "inducer": "closed"}


@pytest.mark.parametrize(
    ("answers", "count", "rule", "expected"),
    [
        (["7", "7"], 2, "math", True),
        (["7", "8", "7"], 2, "math", False),
        (["8", "7", "7"], 2, "math", True),
        (["7", "7"], 3, "math", False),
        (["7"], 1, "math", True),
        (["\\frac12", "0.5", "\\dfrac{1}{2}"], 3, "math", True),
        (["x+1", "1+x"], 2, "math", True),
        (["(x+1)^2", "x^2+2x+1"], 2, "math", False),  # for algebra to decide
        (["", ""], 2, "math", False),
        (["7 wait", "7 wait"], 2, "math", False),
        (["No", "No"], 2, "math", True),
        (["x \\notin S", "x\\notin S"], 2, "math", True),
        (["B", "(b) Mars"], 2, "choice", True),
        (["B", "C"], 2, "choice", False),
    ],
)
def test_agreement(answers: list[str], count: int, rule: str, expected: bool) -> None:
    policy = Consistency(name="exit", agree=count)
    trials = [Trial(place, 0.0, text, "wrong", 1) for place, text in enumerate(answers, start=1)]
    assert policy.decide(trials, partial(Grader.same, rule=rule)) is expected


async def test_it_leaves_after_enough_equal_answers_whatever_their_confidence(
    respond: Respond,
) -> None:
    def said(kept: str) -> tuple[str, float]:
        return ("2.0}" if kept.endswith("Four.") else "2}" if "Two." in kept else "5}", 0.01)

    done = await respond(MAIN, EXIT, trial=said)
    assert done.text("thinking_ids") == "One.\n\nTwo.\n\nThree.\n\nFour."
    assert done.response.exit_reason == "policy"
    assert [trial.answer for trial in done.response.trials] == ["5", "2", "2", "2.0"]
    never = await respond(MAIN, EXIT | {"agree": 4}, trial=said)
    assert never.response.exit_reason == "closed"


@pytest.mark.slow
async def test_the_embedded_model_leaves_only_after_equal_answers(embedded: Embedded) -> None:
    exit = {"monitor": "tokens", "every": 16, "inducer": "closed", "agree": 2}
    responses = await embedded.responses(policy="consistency", **exit)
    assert any(response.exit_reason == "policy" for response in responses)
    for response in responses:
        answers = [trial.answer for trial in response.trials]
        same = [bool(one) and one == two for one, two in pairwise(answers)]
        assert not any(same[:-1])
        assert (response.exit_reason == "policy") == (bool(same) and same[-1])
