"""A run's trained model as a model of the Hub: weights, card, evaluation results."""

from __future__ import annotations

import shutil
from math import isfinite
from pathlib import Path

from dto.errors import DtoError, disk_errors
from dto.hub.card import (
    TAGS,
    Origin,
    Shown,
    cited,
    in_block,
    render_card,
    results,
)
from dto.hub.folder import FORMAT, check_chain, link, write_mark
from dto.recipe import Recipe
from dto.redact import Redaction
from dto.runs.reader import RunReader
from dto.tasks import TASKS

TEXTS = (".json", ".jinja", ".txt", ".model")
NOT_TRAINED = 0


def build_model(
    run: RunReader, folder: Path, shown: Shown, base: Origin, private: Redaction
) -> str:
    """Write the trained model and its card below `folder`; the text of the card.

    `base` is the model that was trained. The card holds the evaluation of the model `trained`,
    where there is one, as the Hub's model-index. Raises DtoError for a run that has not trained,
    one that kept its base model, an evaluation of another training, and weights that are no
    safetensors.
    """
    done = run.manifest("train")
    if done is None or not (run / "train" / "model").is_dir():
        raise DtoError(
            f"stage train is not finished in {run.path}: start `dto train {run.path}` first"
        )
    if done.get("kept_step") == NOT_TRAINED:
        raise DtoError(f"{run.path} has no model of its own: {done.get('reason')}")
    files = sorted(path for path in (run / "train" / "model").rglob("*") if path.is_file())
    odd = [path.name for path in files if path.suffix not in (".safetensors", *TEXTS)]
    if odd:
        raise DtoError(f"{run.path}/train/model holds {odd[0]}: weights go up as safetensors alone")
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in files:
            target = folder / path.relative_to(run / "train" / "model")
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.suffix == ".json" else ""
            if (redacted := private.text(text)) != text:
                target.write_text(redacted, encoding="utf-8")
            else:
                link(path, target)
        digests = {
            stage: said["digest"]
            for stage in ("train", "evaluate")
            if (said := run.manifest(stage)) is not None
        }
        mark = {
            "format": FORMAT, "name": shown.recipe.name, "seed": shown.recipe.seed,
            "stages": ["train"], "digests": digests, "license": shown.license,
            "sources": [str(origin) for origin in (base, *shown.sources)],
        }  # fmt: skip
        write_mark(folder, mark)
        card = _card(run, shown, base, done, private)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def _card(
    run: RunReader, shown: Shown, base: Origin, done: dict[str, object], private: Redaction
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    from dto.reporting.report import measure

    name, recipe = shown.name, shown.recipe
    evaluated = run.manifest("evaluate") is not None
    if evaluated:
        check_chain(run, ["evaluate"])  # or these would be the results of another model
    report = measure(run.path) if evaluated else None
    measured = []
    for row in report.rows if report else ():
        if row.model != "trained":
            continue
        dataset, revision = _dataset(row.task, recipe, name)
        setting = f"exit {row.exit}, avg@{row.more['samples']}, T={recipe.evaluate.temperature}"
        for metric, value, what in (
            ("accuracy", round(100 * row.accuracy.value, 2), "accuracy, %"),
            ("tokens", round(row.tokens.value, 1), "tokens per question"),
        ):
            if isfinite(value):
                measured.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=dataset,
                        dataset_name=in_block(row.task or recipe.name),
                        dataset_split="test",
                        dataset_revision=revision,
                        metric_type=metric,
                        metric_value=value,
                        metric_name=f"{what} ({setting})",
                    )
                )
    base_model = recipe.model.name if recipe.model.name.count("/") == 1 else None
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=[name],
        eval_results=measured or None,
        model_name=name.rpartition("/")[2],
        library_name="transformers",
        pipeline_tag="text-generation",
        license=shown.license,
        tags=[*TAGS, recipe.train.method],
    )
    return render_card(
        "model_card.md.jinja",
        data.to_yaml(),
        **shown._asdict(),
        model=base,
        done=done,
        results=results(report, private, ("base", "trained")) if report else "",
        plain=report.plain if report else "",
        citations=cited(recipe, ("train", *(["evaluate"] if report else []))),
    )


def _dataset(task: str, recipe: Recipe, name: str) -> tuple[str, str | None]:
    """The Hub's name of what was answered; the run's own dataset where questions are its own."""
    known = TASKS.get(task)
    if known is not None:
        return known.hub, known.revision
    named = [*recipe.evaluate.tasks, recipe.problems.test_source, recipe.problems.source]
    hub = next((each for each in named if each and each.endswith(f"/{task}")), None)
    return hub or name, None
