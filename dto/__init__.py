"""Dynamic thinking-pattern optimization: shorter and better reasoning (arXiv 2505.21765).

The public names load what they need when they are first used: `import dto` alone is light.

Its rooms, the lowest floor first; a room knows nothing of those above it. The core, of at most
8,500 lines, is the method of DTO and DEER, with runs that survive; DRQA and the trainings of all
three papers are rooms of the seams.

    core      records recipe settings extension text tags prompts context trajectories
              rollouts protocols errors concurrency tables usage sequential
              segmentation stages judges exits runs
    seams     engines grading training tasks drqa nano policies baselines studies statistics source
    pipeline  pipeline
    shell     reporting compare calibration forecast redact viewer hub commands cli
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "sample": "dto.stages.sample",
    "batch": "dto.drqa.batch",
    "segment": "dto.stages.segment",
    "estimate": "dto.stages.estimate",
    "optimize": "dto.stages.optimize",
    "prune": "dto.stages.prune",
    "pair": "dto.stages.pair",
    "label": "dto.drqa.label",
    "train": "dto.training.train",
    "evaluate": "dto.stages.evaluate",
    "report": "dto.reporting.write",
    "trace": "dto.studies.trace",
    "pilot": "dto.studies.pilot",
    "show": "dto.viewer.render",
    "view": "dto.viewer.page",
    "Context": "dto.context",
    "Grader": "dto.grading",
    "open_engine": "dto.engines",
    "ExitPolicy": "dto.settings",
    "Recipe": "dto.recipe",
    "load_recipe": "dto.recipe",
    "DtoError": "dto.errors",
    "Problem": "dto.records",
    "Trajectory": "dto.records",
    "Segment": "dto.records",
    "ExitEstimate": "dto.records",
    "OptimizedTrajectory": "dto.records",
    "PreferencePair": "dto.records",
    "BatchResponse": "dto.records",
    "Chain": "dto.records",
    "LabelledChain": "dto.records",
    "EvaluationRow": "dto.records",
    "Dropped": "dto.records",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dto' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
