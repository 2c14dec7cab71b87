"""Dynamic thinking-pattern optimization: shorter and better reasoning (arXiv 2505.21765).

The public names are listed below, once for type checkers and once for use: each is imported when it
is first used, so that `import dto` alone is light. Any other module may change without notice.

Its layers, lowest first; a layer imports none above it. The core, of at most 8,500 lines, is the
method of DTO and DEER with durable runs. DRQA and the trainings of all three papers are seams.

    core      records recipe settings extension text tags prompts context trajectories
              rollouts protocols errors concurrency tables usage sequential
              languages segmentation stages judges exits runs
    seams     engines grading training tasks drqa nano policies baselines studies statistics source
              llm_judge processes segmenter redact
    pipeline  pipeline cluster resources empty log
    shell     reporting compare calibration forecast takes viewer hub serving api
              commands cli
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dto.api import Run as Run
    from dto.api import ThinkingPattern as ThinkingPattern
    from dto.api import grade as grade
    from dto.api import grade_async as grade_async
    from dto.api import load_recipe as load_recipe
    from dto.api import pairs_from as pairs_from
    from dto.api import run as run
    from dto.api import segment_text as segment_text
    from dto.context import Context as Context
    from dto.drqa.batch import batch as batch
    from dto.drqa.label import label as label
    from dto.drqa.records import BatchResponse as BatchResponse
    from dto.drqa.records import Chain as Chain
    from dto.drqa.records import LabelledChain as LabelledChain
    from dto.engines import open_engine as open_engine
    from dto.errors import DtoError as DtoError
    from dto.exits.path import ExitedResponse as ExitedResponse
    from dto.exits.path import ResponsePath as ResponsePath
    from dto.extension import Settings as Settings
    from dto.grading import Grader as Grader
    from dto.protocols import Capabilities as Capabilities
    from dto.protocols import Chunk as Chunk
    from dto.protocols import Completion as Completion
    from dto.protocols import Engine as Engine
    from dto.protocols import Graded as Graded
    from dto.protocols import Sampling as Sampling
    from dto.recipe import ModelSettings as ModelSettings
    from dto.recipe import Recipe as Recipe
    from dto.records import Dropped as Dropped
    from dto.records import EvaluationRow as EvaluationRow
    from dto.records import ExitEstimate as ExitEstimate
    from dto.records import OptimizedTrajectory as OptimizedTrajectory
    from dto.records import PreferencePair as PreferencePair
    from dto.records import Problem as Problem
    from dto.records import Segment as Segment
    from dto.records import Span as Span
    from dto.records import Trajectory as Trajectory
    from dto.records import Trial as Trial
    from dto.records import Verdict as Verdict
    from dto.reporting.report import Report as Report
    from dto.reporting.write import report as report
    from dto.serving.model import OpenModel as OpenModel
    from dto.serving.model import answer as answer
    from dto.serving.model import answer_async as answer_async
    from dto.serving.model import open_model as open_model
    from dto.serving.model import stream as stream
    from dto.serving.records import Answering as Answering
    from dto.serving.records import Left as Left
    from dto.serving.records import Reply as Reply
    from dto.serving.records import Thinking as Thinking
    from dto.serving.records import Tokens as Tokens
    from dto.serving.records import Tried as Tried
    from dto.settings import ExitPolicy as ExitPolicy
    from dto.stages.estimate import estimate as estimate
    from dto.stages.evaluate import evaluate as evaluate
    from dto.stages.optimize import optimize as optimize
    from dto.stages.pair import pair as pair
    from dto.stages.prune import prune as prune
    from dto.stages.sample import sample as sample
    from dto.stages.segment import segment as segment
    from dto.studies.pilot import pilot as pilot
    from dto.studies.trace import trace as trace
    from dto.tasks.task import Task as Task
    from dto.training.rewards import Rewarded as Rewarded
    from dto.training.train import train as train
    from dto.viewer.page import view as view
    from dto.viewer.render import show as show

__version__ = "0.1.0"

_PUBLIC = {
    name: module
    for module, names in {
        "dto.api": "Run ThinkingPattern grade grade_async load_recipe pairs_from run segment_text",
        "dto.context": "Context",
        "dto.drqa.batch": "batch",
        "dto.drqa.label": "label",
        "dto.drqa.records": "BatchResponse Chain LabelledChain",
        "dto.engines": "open_engine",
        "dto.errors": "DtoError",
        "dto.exits.path": "ExitedResponse ResponsePath",
        "dto.extension": "Settings",
        "dto.grading": "Grader",
        "dto.protocols": "Capabilities Chunk Completion Engine Graded Sampling",
        "dto.recipe": "ModelSettings Recipe",
        "dto.records": "Dropped EvaluationRow ExitEstimate OptimizedTrajectory PreferencePair "
        "Problem Segment Span Trajectory Trial Verdict",
        "dto.reporting.report": "Report",
        "dto.reporting.write": "report",
        "dto.serving.model": "OpenModel answer answer_async open_model stream",
        "dto.serving.records": "Answering Left Reply Thinking Tokens Tried",
        "dto.settings": "ExitPolicy",
        "dto.stages.estimate": "estimate",
        "dto.stages.evaluate": "evaluate",
        "dto.stages.optimize": "optimize",
        "dto.stages.pair": "pair",
        "dto.stages.prune": "prune",
        "dto.stages.sample": "sample",
        "dto.stages.segment": "segment",
        "dto.studies.pilot": "pilot",
        "dto.studies.trace": "trace",
        "dto.tasks.task": "Task",
        "dto.training.rewards": "Rewarded",
        "dto.training.train": "train",
        "dto.viewer.page": "view",
        "dto.viewer.render": "show",
    }.items()
    for name in names.split()
}

__all__ = ["__version__", *_PUBLIC]

if not TYPE_CHECKING:  # with this a type checker would take every name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'dto' has no attribute {name!r}")
        return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
