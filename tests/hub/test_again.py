"""Publishing again: what makes a new commit, and what only another occasion changed does not."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from dto.errors import DtoError
from dto.hub.publish import publish
from dto.runs import manifest
from dto.runs.run import OpenRun
from tests.hub.conftest import sent
from tests.hub.server import OWNER, Fault, Hub, Repo
from tests.hub.test_publish import KEY, NAME, published


def computed_again(run: OpenRun, stage: str) -> None:
    """As if a stage had come to the same on another day, with other versions of packages."""
    said = manifest.read(run / stage) or {}
    changes = {"seconds": 99.0, "peak_memory": 1, "versions": {"dto": "9.9"}, "git": None}
    usage = said["usage"] | {"cached": 1, "wasted": 2}
    manifest.write(run / stage, said | changes | {"usage": usage})
    path = run / stage / "timings.parquet"
    timings = pl.read_parquet(path).with_columns(seconds=pl.col("seconds") + 1)
    path.unlink()  # what was linked from elsewhere stays as it is
    timings.write_parquet(path)


def test_other_seconds_and_versions_make_no_commit(
    run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, NAME)
    before = dict(published(hub))
    computed_again(run, "sample")
    monkeypatch.setattr("dto.hub.card.TAGS", ("reworded",))  # a newer version of dto
    hub.requests.clear()
    again = publish(run, NAME).uploaded
    assert again is not None and not again.changed and published(hub) == before
    assert not [each for each in hub.requests if each.startswith("PUT")]
    publish(run, NAME, overwrite=True)
    assert "reworded" in published(hub)["README.md"].decode()
    assert json.loads(published(hub)["sample/manifest.json"])["seconds"] == 99.0
    assert len(hub.repos[KEY].commits) == 3


def test_what_others_can_see_makes_a_commit(run: OpenRun, hub: Hub) -> None:
    publish(run, NAME)
    computed_again(run, "sample")
    with (run / "pair/dropped.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "x", "reason": "new_reason", "detail": ""}\n')
    again = publish(run, NAME).uploaded
    assert again is not None and again.changed and len(hub.repos[KEY].commits) == 3
    assert "`new_reason`" in published(hub)["README.md"].decode()
    assert json.loads(published(hub)["sample/manifest.json"])["seconds"] == 99.0
    assert sent(run, NAME, license="odc-by").changed
    assert not sent(run, NAME, license="odc-by").changed


def test_what_was_changed_on_the_hub(run: OpenRun, hub: Hub) -> None:
    """A card that its owner improved stays; a table that somebody damaged is restored."""
    publish(run, NAME)
    files = published(hub)
    files["README.md"] += b"\nMore about it.\n"
    assert not sent(run, NAME).changed
    files["images/mine.png"] = b"PNG"  # which that card shows
    damaged, files["pair/rows.parquet"] = files["pair/rows.parquet"], b"PAR1"
    del files["sample/manifest.json"]
    files["stray.txt"] = b"x"
    assert sent(run, NAME).changed
    assert published(hub)["pair/rows.parquet"] == damaged
    assert "sample/manifest.json" in published(hub) and "stray.txt" not in published(hub)
    assert "images/mine.png" in published(hub)
    assert published(hub)["README.md"].endswith(b"More about it.\n")


def test_a_model_is_not_sent_again_for_its_card(
    run: OpenRun, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run, NAME, model=True)
    computed = manifest.read(run / "evaluate") or {}
    manifest.write(run / "evaluate", computed | {"seconds": 1e6})
    monkeypatch.setattr("dto.hub.model.TAGS", ("reworded",))
    assert not sent(run, NAME, model=True).changed
    manifest.write(run / "evaluate", computed | {"digest": "0" * 16})  # other results
    assert sent(run, NAME, model=True).changed


def test_a_licence_that_cannot_be_asked_for_is_not_lost(run: OpenRun, hub: Hub) -> None:
    repo = hub.repos["dataset", f"{OWNER}/questions"] = Repo(private=False)
    repo.commits.append({"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    problems = run.recipe.problems.model_copy(update={"source": f"{OWNER}/questions"})
    other = run.following(run.recipe.model_copy(update={"problems": problems}))
    publish(other, NAME)
    hub.faults.append(Fault("GET", "/questions", times=99, status=503))
    with pytest.raises(DtoError, match=r"questions: the Hub answered 503.* start the same command"):
        publish(other, NAME)
    hub.faults[0] = Fault("GET", "/questions", times=99, status=403, code="GatedRepo")
    assert "licence: unknown" in publish(other, NAME, dry_run=False).card


def test_a_card_that_the_hub_refuses(run: OpenRun, hub: Hub) -> None:
    hub.faults.append(Fault("POST", "/api/validate-yaml", status=400))
    with pytest.raises(DtoError, match=r"the Hub refuses the card of .*--license"):
        publish(run, NAME, license="my own")
    assert list(published(hub)) == [".gitattributes"]
    assert Path(run / "publish").is_dir()  # to look at
