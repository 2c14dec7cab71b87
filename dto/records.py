"""The rows: what each stage reads and writes.

problems → sample → trajectories → segment → estimate → optimize → prune → pair → train → evaluate
problems → sample, batch → chain → label → train (DRQA, 2508.17803)

All are frozen. Spans are half open. Token ids are stored once, with the row that sampled them;
later rows refer to it. Every record has an `id`; tables are sorted by it, and the id of a row that
belongs to another starts with that one's id, so that sorted tables can be joined in one pass.
Seeds are derived from ids, never from the order in which something is computed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import nan
from typing import Literal, NamedTuple

SEED_BITS = 62  # below int64 even after the few units that an engine adds for its n samples


def derive(seed: int, row_id: str, purpose: str, *counters: int) -> int:
    """A seed for one request: a function of run seed, row id and purpose.

    `counters` tell apart the requests that one row makes for one purpose (boundary, round).
    Two requests of a run share a seed only when all four agree.
    """
    text = "\x1f".join([str(seed), row_id, purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)


def content_id(*parts: str) -> str:
    """A short id that depends on content alone (16 hexadecimal digits)."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


Split = Literal["train", "dev", "test"]
Grade = Literal["correct", "wrong", "truncated", "failed"]
FinishReason = Literal["stop", "length", "failed"]
IdsFrom = Literal["sampled", "encoded"]
Decision = Literal["above", "below", "undecided"]
Outcome = Literal["shortened", "repaired", "unchanged", "not_shorter"]
VerdictKind = Literal["keep", "redundant", "meaningless", "harmful", "unjudged"]
Origin = Literal["vanilla", "batch"]
ChainVerdict = Literal["verbose", "concise", "wrong"]
Letter = Literal["A", "B", "C"]
STAYS: tuple[VerdictKind, ...] = ("keep", "unjudged")  # the others propose a removal
GIVEN_UP = "grader_"  # how the reasons begin of answers that took too long to be compared
NOT_RUN = "no_code_execution"  # the reason of a program that nobody allowed to be run


class Span(NamedTuple):
    """A half-open interval [start, end)."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """End - start."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer: mathematics, a letter, or JSON with tests for a program.

    What that JSON holds is said at `dto.tasks.task.Task`.
    """

    id: str
    task: str
    split: Split
    question: str
    answer: str
    rule: str = "math"
    metadata: dict[str, str] = field(default_factory=dict)
    prompt: str = "solve"  # the prompt that asks it

    @staticmethod
    def make_id(task: str, question: str, answer: str) -> str:
        """The content hash that is a problem's id."""
        return content_id(task, question, answer)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One response of a model: its token ids are the state, the text is for people.

    `text` is the decoding of `token_ids` without a final end-of-sequence token; `thinking` and
    `conclusion` are character spans over it (the tags belong to neither). `thinking_tokens` is the
    token span over `token_ids` that `thinking` covers. A trajectory that never closed its thinking
    has an empty conclusion and is graded `truncated`.
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
    reason: str = ""  # of a failed grade, or of a wrong one where the grader gave up

    @staticmethod
    def make_id(problem_id: str, sample: int) -> str:
        """`problem/sample`, the sample padded so that ids sort in order."""
        return f"{problem_id}/{sample:03d}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A thinking pattern d_i. `tokens` and `chars` span the trajectory's ids and text.

    The segments of a trajectory tile its thinking: no gap, no overlap, in both coordinates. `exit`
    is where a response that leaves after this segment is cut: `tokens.end`, less the tokens at the
    end that hold only white space (the text that follows an exit brings its own).
    """

    id: str  # trajectory id / index
    trajectory_id: str
    index: int
    tokens: Span
    chars: Span
    exit: int
    cue: str  # as it stands in the text; empty for the opening segment and for cueless boundaries
    kind: str

    @staticmethod
    def make_id(trajectory_id: str, index: int) -> str:
        """`trajectory/index`, padded so that ids sort in order."""
        return f"{trajectory_id}/{index:05d}"


@dataclass(frozen=True, slots=True)
class ExitEstimate:
    """How likely an answer given right after segment `boundary` is right (2505.21765, section 3).

    `rollouts` counts what was sampled, `failed` leaves the denominator, `truncated` never counts as
    a success. `p` is successes / (rollouts - failed), `p_low`..`p_high` its 95 % interval
    (Clopper-Pearson; nan and 0..1 where every rollout failed). `tokens` is what the rollouts
    generated.
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
    reason: str = ""  # of a boundary left undecided because its rollouts failed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of one segment, and what became of it.

    `unjudged` is no verdict: the judge was not asked, or failed, for the `reason` given. `score`
    orders the candidates (counterfactual: p without the segment minus p with it; llm: 3 harmful,
    2 meaningless, 1 redundant). `pruned` is the end state: a candidate that was restored is not
    pruned.
    """

    segment: int
    verdict: VerdictKind
    score: float
    pruned: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OptimizedTrajectory:
    """A trajectory truncated at its first good exit, finalized, and (after `prune`) pruned.

    `token_ids` is the whole response: kept segments, d_finalize, conclusion, EOS where the model
    emitted it. `kept` indexes the trajectory's segments. `pass_rate` is the share of the K
    finalizations that were right: a low one marks a lucky version. `verified_p` is the
    share of right answers among `verified_rollouts` rollouts after a prune was verified, which
    neither its test nor its choice has seen; nan and 0 where nothing was pruned, or none were made.
    `counterfactual` are that judge's verdicts beside those of the `llm` judge, where
    `prune.agreement` asks for them.
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
    """TRL's standard columns for people and the Hub, references to the stored ids for training.

    `chosen_id` names an OptimizedTrajectory when `chosen_from` is `optimized`, else a Trajectory;
    `rejected_id` names a Trajectory. Lengths are in tokens and include EOS where it was emitted.
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

    `position` counts response tokens before the trial; `confidence` is in [0, 1]; `tokens` were
    generated for it. `grade` makes shadow evaluation free.
    """

    position: int
    confidence: float
    answer: str
    grade: Grade
    tokens: int


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One answered problem under one exit policy.

    `tokens` = thinking + answer + trial tokens: everything that the model generated for it. The
    response's thinking is `thinking_tokens`; `answer_tokens` hold its `</think>`, conclusion and
    EOS (a closing text that a policy puts in is read, not generated); `trial_tokens` hold the
    trials and what an exit cut off again (a cue, white space). `exit_reason` is `policy` (left
    early), `budget` (forced), `closed` (the model closed its thinking), `unclosed` (it ended inside
    it), `length` or `failed`. `would_leave` is the index of the trial at which the policy leaves,
    or in shadow mode would have left; -1 for none.
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
    model_flops: float = nan  # those of `dto.usage`; a table of an earlier version has none

    @staticmethod
    def make_id(model: str, exit_name: str, problem_id: str, sample: int) -> str:
        """`model/exit/problem/sample`."""
        return f"{model}/{exit_name}/{problem_id}/{sample:03d}"


@dataclass(frozen=True, slots=True)
class BatchResponse:
    """One response to `k` numbered questions; its token ids are the state, as a Trajectory's are.

    Question i (from 1) is `problem_ids[i - 1]`, and so are the entries of `grades`, `answers` and
    `faults`. A grade is that of the answer which the conclusion gives to this number. Where it
    gives none that can be told, the grade is `wrong` and the fault says why; a response that ran
    out of tokens, or never closed its thinking, is `truncated` throughout, a request that failed
    `failed` for the `reason` given.
    """

    id: str  # k / sample / content id of the questions in their order
    problem_ids: tuple[str, ...]
    k: int
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
    grades: tuple[Grade, ...]
    answers: tuple[str, ...]
    faults: tuple[str, ...]
    reason: str = ""  # of failed grades, or of a wrong one where the grader gave up

    @staticmethod
    def make_id(sample: int, problem_ids: tuple[str, ...]) -> str:
        """`k/sample/content`, the numbers padded so that ids sort in order."""
        return f"{len(problem_ids):03d}/{sample:03d}/{content_id(*problem_ids)}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The reasoning about one question with its answer, however it was asked.

    `span` is the chain's thinking over the token ids of the source: the Trajectory (`vanilla`, k is
    1) or BatchResponse (`batch`) `source_id`. `text` is that thinking as the judge reads it, whose
    chains look alike whatever their origin (`dto.drqa.split`); `tokens` counts the span, `length`
    the tokens of `text`. Grades are `correct` or `wrong`: others make no chain.
    """

    id: str  # problem id / origin / k / sample
    problem_id: str
    origin: Origin
    k: int
    sample: int
    number: int  # of the question in its prompt, from 1
    source_id: str
    span: Span
    text: str
    tokens: int
    length: int
    answer: str
    grade: Grade

    @staticmethod
    def make_id(problem_id: str, origin: Origin, k: int, sample: int) -> str:
        """`problem/origin/k/sample`, the numbers padded so that ids sort in order."""
        return f"{problem_id}/{origin}/{k:03d}/{sample:03d}"


@dataclass(frozen=True, slots=True)
class LabelledChain:
    """A chain with the question about it and the letter that is right.

    `options` are the wordings as A, B and C show them: a permutation drawn from `seed`. `prompt` is
    the text of `prompt_ids`. `split` is `train`, or `dev` for the problems whose chains are held
    out to measure judging. Lengths are in tokens.
    """

    id: str  # the chain's id
    problem_id: str
    split: Split
    question: str
    chain: str
    answer: str
    verdict: ChainVerdict
    label: Letter
    options: tuple[str, ...]
    origin: Origin
    k: int
    tokens: int  # that the model generated for the chain
    length: int  # of `chain`
    seed: int
    prompt: str
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that ends here, with its reason: nothing is dropped in silence."""

    id: str
    reason: str  # a short slug that counts can be grouped by: `no_exit`, `no_gold_answer`
    detail: str = ""
