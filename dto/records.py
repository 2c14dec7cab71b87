"""Records: the rows that the stages read and write.

problems → sample → trajectories → segment → estimate → optimize → prune → pair → train → evaluate
problems → sample, batch → chain → label → train (DRQA, 2508.17803)

All records are frozen. Spans are half open. Token ids are stored once, with the row that sampled
them; later rows refer to that row. Every record has an `id`. Tables are sorted by id, and the id of
a child row begins with the id of its parent, so sorted tables can be joined in one pass. Seeds
derive from ids, never from the order of computation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import nan
from typing import Literal, NamedTuple

SEED_BITS = 62  # below int64 even after the few units that an engine adds for its n samples


def derive(seed: int, row_id: str, purpose: str, *counters: int) -> int:
    """Derive the seed of one request from the run's seed, the row id and the purpose.

    `counters` distinguish requests that one row makes for one purpose (boundary, round). Two
    requests of a run share a seed only when all four arguments agree.
    """
    text = "\x1f".join([str(seed), row_id, purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def content_id(*parts: str) -> str:
    """Hash the content to a short id (16 hexadecimal digits)."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


Split = Literal["train", "dev", "test"]
Grade = Literal["correct", "wrong", "truncated", "failed"]
FinishReason = Literal["stop", "length", "failed"]
IdsFrom = Literal["sampled", "encoded"]
Decision = Literal["above", "below", "undecided"]
Outcome = Literal["shortened", "repaired", "unchanged", "not_shorter"]
VerdictKind = Literal["keep", "redundant", "meaningless", "harmful", "unjudged"]
STAYS: tuple[VerdictKind, ...] = ("keep", "unjudged")  # the other verdicts propose a removal
RULES = ("math", "choice", "code")  # built-in answer rules; others are named by import path
RULE_FAILED = "rule_"  # prefix of the reasons when a rule of another package failed
GIVEN_UP = "grader_"  # prefix of the reason when the grader gave up comparing an answer
NOT_RUN = "no_code_execution"  # the reason when running programs was not allowed


class Span(NamedTuple):
    """A half-open interval [start, end)."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """End - start."""
        return self.end - self.start


NOWHERE = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer: mathematics, a letter, or JSON with tests for a program.

    `dto.tasks.task.Task` describes that JSON.
    """

    id: str
    task: str
    split: Split
    question: str
    answer: str
    rule: str = "math"  # how answers are compared
    metadata: dict[str, str] = field(default_factory=dict)
    prompt: str = "solve"  # the prompt that asks it

    @staticmethod
    def make_id(task: str, question: str, answer: str) -> str:
        """Hash task, question and answer to the problem's id."""
        return content_id(task, question, answer)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One response of a model. Its token ids are the state; the text is for people.

    `text` decodes `token_ids` without a final end-of-sequence token. `thinking` and `conclusion`
    are character spans over it; neither includes the tags. `thinking_tokens` is the token span over
    `token_ids` that `thinking` covers. A trajectory that never closed its thinking has an empty
    conclusion and is graded `truncated`.
    """

    id: str  # problem id / sample index
    problem_id: str
    model: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    ids_from: IdsFrom
    text: str
    thinking: Span
    conclusion: Span
    thinking_tokens: Span
    finish_reason: FinishReason
    grade: Grade
    answer: str = ""
    reason: str = ""  # why the grade is failed, or wrong because the grader gave up

    @staticmethod
    def make_id(problem_id: str, sample: int) -> str:
        """`problem/sample`, the sample padded so that ids sort in order."""
        return f"{problem_id}/{sample:03d}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A thinking pattern d_i. `tokens` and `chars` span the trajectory's ids and text.

    The segments of a trajectory tile its thinking, in tokens and in characters: no gap, no overlap.
    `exit` is the token index at which a response that leaves after this segment is cut. It is
    `tokens.end` without trailing white-space tokens, because the text after an exit has its own.
    """

    id: str  # trajectory id / index
    trajectory_id: str
    index: int
    tokens: Span
    chars: Span
    exit: int
    cue: str  # verbatim from the text; empty for the first segment and for boundaries without a cue
    kind: str

    @staticmethod
    def make_id(trajectory_id: str, index: int) -> str:
        """`trajectory/index`, padded so that ids sort in order."""
        return f"{trajectory_id}/{index:05d}"


@dataclass(frozen=True, slots=True)
class ExitEstimate:
    """The probability that an answer given right after segment `boundary` is right.

    Source: 2505.21765, section 3. `rollouts` counts all rollouts; `failed` ones leave the
    denominator; `truncated` ones never count as successes. `p` is successes / (rollouts - failed)
    with the 95 % Clopper-Pearson interval `p_low`..`p_high` (nan and 0..1 if every rollout failed).
    `tokens` counts the tokens that the rollouts generated.
    """

    id: str  # the segment's id
    trajectory_id: str
    boundary: int
    rollouts: int
    successes: int
    truncated: int
    failed: int
    p: float
    p_low: float
    p_high: float
    decision: Decision
    tokens: int
    reason: str = ""  # why the boundary is undecided, if its rollouts failed


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one segment, and whether the segment was pruned.

    `unjudged` means that the judge was not asked or failed; `reason` says why. `score` orders the
    candidates (counterfactual: p without the segment minus p with it; llm: 3 harmful, 2
    meaningless, 1 redundant). `pruned` is the final state: false for a candidate that failed
    verification and was restored.
    """

    segment: int
    verdict: VerdictKind
    score: float
    pruned: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OptimizedTrajectory:
    """A trajectory truncated at its first good exit, finalized, and (after `prune`) pruned.

    `token_ids` is the whole response: kept segments, d_finalize, conclusion, and EOS if the model
    emitted it. `kept` indexes the trajectory's segments. `pass_rate` is the share of the K
    finalizations that were right; a low rate marks a lucky version. `verified_p` is the share of
    right answers among `verified_rollouts` fresh rollouts, which were used neither to choose nor to
    test the pruning (nan and 0 if nothing was pruned, or no such rollouts were made).
    `counterfactual` holds the counterfactual judge's verdicts beside those of the recipe's judge,
    for the trajectories that `prune.agreement` selects.
    """

    id: str  # the trajectory's id
    trajectory_id: str
    problem_id: str
    exit: int  # boundary index
    kept: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    thinking: Span
    thinking_tokens: Span
    answer: str
    pass_rate: float
    tokens_before: int
    tokens_after: int
    attention_flops_before: float
    attention_flops_after: float
    outcome: Outcome
    verdicts: tuple[Verdict, ...] = ()
    verified_p: float = float("nan")
    join_perplexity: float = float("nan")
    counterfactual: tuple[Verdict, ...] = ()
    verified_rollouts: int = 0


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A preference pair: TRL's standard columns as text, and references to the stored token ids.

    The text is for people and the Hub; training uses the ids. `chosen_id` names an
    OptimizedTrajectory if `chosen_from` is `optimized`, else a Trajectory; `rejected_id` names a
    Trajectory. Lengths are in tokens and include EOS if the model emitted it.
    """

    id: str
    problem_id: str
    trajectory_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_id: str
    rejected_id: str
    chosen_from: str
    rejected_from: str
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial answer at a reasoning transition (2504.15895, section 3).

    `position` counts response tokens before the trial. `confidence` is in [0, 1]. `tokens` counts
    the tokens generated for the trial. With `grade`, other thresholds can be evaluated without
    new samples. `token_ids` follow the inducer, and `text` begins at its box; of several inducers,
    those of the answer that counts. `char` is the trial's offset in the row's text.
    """

    position: int
    confidence: float
    answer: str
    grade: Grade
    tokens: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    char: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One answered problem under one exit policy.

    `tokens` = `thinking_tokens` + `answer_tokens` + `trial_tokens`: everything that the model
    generated. `answer_tokens` counts `</think>`, conclusion and EOS, but not a closing text that a
    policy inserted, which is read and not generated. `trial_tokens` counts trials and tokens that
    an exit cut off (a cue, white space). `exit_reason` is `policy` (left early), `budget` (forced),
    `closed` (the model closed its thinking), `unclosed` (it ended inside its thinking), `length`,
    `failed`, or `zero_division` (DEER's mode compat). `would_leave` is the index of the trial at
    which the policy leaves, or would have left in shadow mode; -1 if there is none.

    `token_ids` is the context after the prompt, with the text that an exit inserted: its span over
    the ids, `inserted_tokens`, begins where the thinking ends. `text` decodes `token_ids`, and
    `thinking`, `inserted` and `conclusion` (what was graded) are character spans over it. All are
    empty if `evaluate.keep_answers` is off, and in tables of earlier versions.
    """

    id: str  # model / exit / problem id / sample
    model: str
    exit: str
    problem_id: str
    sample: int
    seed: int
    grade: Grade
    answer: str
    reason: str
    exit_reason: str
    thinking_tokens: int
    answer_tokens: int
    trial_tokens: int
    tokens: int
    prompt_tokens: int
    attention_flops: float
    trials: tuple[Trial, ...] = ()
    would_leave: int = -1
    model_flops: float = nan  # as `dto.usage` counts them; nan in tables of earlier versions
    token_ids: tuple[int, ...] = ()
    inserted_tokens: Span = NOWHERE
    text: str = ""
    thinking: Span = NOWHERE
    inserted: Span = NOWHERE
    conclusion: Span = NOWHERE

    @staticmethod
    def make_id(model: str, exit_name: str, problem_id: str, sample: int) -> str:
        """`model/exit/problem/sample`."""
        return f"{model}/{exit_name}/{problem_id}/{sample:03d}"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that a stage dropped, and why."""

    id: str
    reason: str  # a short slug that counts can be grouped by: `no_exit`, `no_gold_answer`
    detail: str = ""
