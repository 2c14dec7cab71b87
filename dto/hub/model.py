"""The trained model of a run as a Hub model: weights, card, evaluation results."""

from __future__ import annotations

import shutil
from math import isfinite
from pathlib import Path
from shlex import quote

from dto.errors import DtoError, disk_errors
from dto.hub.card import (
    TAGS,
    CardContent,
    Origin,
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
    run: RunReader, folder: Path, content: CardContent, base: Origin, redaction: Redaction
) -> str:
    """Write the trained model and its card to `folder`; return the text of the card.

    `base` is the model before training. If the model `trained` was evaluated, the card has the
    results in the Hub's model-index. Raises DtoError for a run without training, a run that kept
    its base model, an evaluation of another training, and weights other than safetensors.
    """
    training = run.manifest("train")
    if training is None or not (run / "train" / "model").is_dir():
        raise DtoError(
            f"stage train is not finished in {run.path}: run "
            f"`dto train {quote(str(run.path))}` first"
        )
    if training.get("kept_step") == NOT_TRAINED:
        raise DtoError(f"{run.path} has no trained model: {training.get('reason')}")
    files = sorted(path for path in (run / "train" / "model").rglob("*") if path.is_file())
    other = [path.name for path in files if path.suffix not in (".safetensors", *TEXTS)]
    if other:
        raise DtoError(f"{run.path}/train/model holds {other[0]}: only safetensors are published")
    with disk_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in files:
            target = folder / path.relative_to(run / "train" / "model")
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.suffix == ".json" else ""
            if (redacted := redaction.text(text)) != text:
                target.write_text(redacted, encoding="utf-8")
            else:
                link(path, target)
        digests = {
            stage: manifest["digest"]
            for stage in ("train", "evaluate")
            if (manifest := run.manifest(stage)) is not None
        }
        mark = {
            "format": FORMAT, "name": content.recipe.name, "seed": content.recipe.seed,
            "stages": ["train"], "digests": digests, "license": content.license,
            "sources": [str(origin) for origin in (base, *content.sources)],
        }  # fmt: skip
        write_mark(folder, mark)
        card = _card(run, content, base, training, redaction)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def _card(
    run: RunReader,
    content: CardContent,
    base: Origin,
    training: dict[str, object],
    redaction: Redaction,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    from dto.reporting.report import measure

    name, recipe = content.name, content.recipe
    evaluated = run.manifest("evaluate") is not None
    if evaluated:
        check_chain(run, ["evaluate"])  # else these could be results of another model
    report = measure(run.path) if evaluated else None
    eval_results = []
    for row in report.rows if report else ():
        if row.model != "trained":
            continue
        dataset, revision = _dataset(row.task, recipe, name)
        setting = f"exit {row.exit}, avg@{row.more['samples']}, T={recipe.evaluate.temperature}"
        for metric, value, label in (
            ("accuracy", round(100 * row.accuracy.value, 2), "accuracy, %"),
            ("tokens", round(row.tokens.value, 1), "tokens per question"),
        ):
            if isfinite(value):
                eval_results.append(
                    EvalResult(
                        task_type="text-generation",
                        dataset_type=dataset,
                        dataset_name=in_block(row.task or recipe.name),
                        dataset_split="test",
                        dataset_revision=revision,
                        metric_type=metric,
                        metric_value=value,
                        metric_name=f"{label} ({setting})",
                    )
                )
    base_model = recipe.model.name if recipe.model.name.count("/") == 1 else None
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=[name],
        eval_results=eval_results or None,
        model_name=name.rpartition("/")[2],
        library_name="transformers",
        pipeline_tag="text-generation",
        license=content.license,
        tags=[*TAGS, recipe.train.method],
    )
    return render_card(
        "model_card.md.jinja",
        data.to_yaml(),
        **content._asdict(),
        model=base,
        training=training,
        results=results(report, redaction, ("base", "trained")) if report else "",
        plain=report.plain if report else "",
        citations=cited(recipe, ("train", *(["evaluate"] if report else []))),
    )


def _dataset(task: str, recipe: Recipe, name: str) -> tuple[str, str | None]:
    """Return name and revision of the Hub dataset of a task, by default that of the run."""
    published_task = TASKS.get(task)
    if published_task is not None:
        return published_task.hub, published_task.revision
    names = [*recipe.evaluate.tasks, recipe.problems.test_source, recipe.problems.source]
    hub = next((source for source in names if source and source.endswith(f"/{task}")), None)
    return hub or name, None
