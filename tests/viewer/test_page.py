"""The file: what stands in its data blocks, its colours, and what the command says."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dto
from dto import languages, segmentation, tables
from dto.cli import main
from dto.errors import DtoError
from dto.records import EvaluationRow, Trajectory
from dto.segmentation import patterns
from dto.viewer.data import RunTables
from dto.viewer.nodes import LONG, passage
from dto.viewer.page import Chunk, encode, pack, view
from dto.viewer.tree import KINDS, Element, RunText, el, run_text, to_html
from tests.viewer.generated import HOSTILE, write

ANY_TEXT = st.one_of(
    st.text(max_size=200),
    st.text("<>&\"'/!-script \n\r\t\x00\x1b\u2028\u202e]", max_size=60),
    st.sampled_from(sorted(HOSTILE.values())),
)


def unpack(packed: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def decode(tree: Any, texts: list[str]) -> Any:
    """A packed tree as the page builds it."""
    if isinstance(tree, str):
        return tree
    if isinstance(tree, int):
        return RunText(texts[tree])
    return Element(tree[0], tree[1] or {}, tuple(decode(child, texts) for child in tree[2:]))


class Blocks(HTMLParser):
    """The elements of a page as a browser takes them apart."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self._id = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._id = dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        self._id = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._id] = self.texts.get(self._id, "") + data


@given(ANY_TEXT)
def test_any_text_comes_out_of_the_data_block_as_it_went_in(text: str) -> None:
    chunk = Chunk([], {}, {}, [])
    tree = el("div.x", run_text(text), el("b", "label", title=text), style="--p:1")
    packed = pack({"t": [], "r": [encode(tree, chunk)], "id": text})
    assert not re.search(r"[^A-Za-z0-9+/=]", packed)
    back = unpack(packed)
    assert back["id"] == text
    assert decode(back["r"][0], list(chunk.texts)) == tree
    assert "".join(each.text for each in tree.children if isinstance(each, RunText)) == re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]",
        "", text,
    )  # fmt: skip


@given(st.text("ab \n", min_size=1), st.integers(1, 40))
def test_a_long_text_is_cut_into_blocks_and_nothing_is_lost(text: str, times: int) -> None:
    whole = text * (times * 1_000)
    blocks = passage(whole)
    inner = [each.children if isinstance(each, Element) else (each,) for each in blocks]
    pieces = ["".join(each.text for each in children) for children in inner]
    assert "".join(pieces) == whole
    assert all(len(piece) <= LONG for piece in pieces)


@given(ANY_TEXT)
def test_any_text_stays_text_in_a_notebook(text: str) -> None:
    parsed = Blocks()
    parsed.feed(to_html(el("div.text", run_text(text), title=text, dir="auto")))
    parsed.close()
    assert set(parsed.tags) <= {"div", "span"} and parsed.tags.count("div") == 1
    assert parsed.tags.count("span") == sum(
        not isinstance(each, RunText) for each in run_text(text)
    )


def test_the_file_asks_for_nothing_and_breaks_nowhere(tmp_path: Path) -> None:
    write(tmp_path, len(HOSTILE), samples=2, segments=3, sentences=1, texts=HOSTILE)
    parsed = Blocks()
    page = view(tmp_path).read_text("utf-8")
    parsed.feed(page)
    chunks = [name for name in parsed.texts if re.fullmatch(r"c\d+", name)]
    assert parsed.tags.count("script") == len(chunks) + 3  # the index, ours, and the end's mark
    assert not {"img", "svg", "link", "iframe", "a"} & set(parsed.tags)
    page = page.replace("http://www.w3.org/1998/Math/MathML", "")  # a name, nothing is loaded
    assert "http:" not in page and "https:" not in page and "onerror" not in page
    index = unpack(parsed.texts["index"])
    trajectories, answers = index["lists"]
    assert trajectories["id"] == [row.id for row in RunTables(tmp_path).trajectories()]
    assert answers["id"] == [row.id for row in RunTables(tmp_path).answers()]
    held = [len(unpack(parsed.texts[f"c{n}"])["r"]) for n in range(len(chunks))]
    assert held == [*trajectories["chunks"], *answers["chunks"]]
    assert answers["first"] == len(trajectories["chunks"])


def test_chunks_stay_small_whatever_the_rows_hold(tmp_path: Path) -> None:
    write(tmp_path, 30, samples=4, segments=4, sentences=12, evaluated=False)
    parsed = Blocks()
    parsed.feed(view(tmp_path).read_text("utf-8"))
    (rows,) = unpack(parsed.texts["index"])["lists"]
    assert sum(rows["chunks"]) == 120 and len(rows["chunks"]) > 2
    sizes = [
        sum(map(len, unpack(parsed.texts[f"c{place}"])["t"]))
        for place in range(len(rows["chunks"]))
    ]
    assert max(sizes) < 220_000 and min(sizes[:-1]) > 50_000


def test_the_command_writes_and_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", 1, samples=1, segments=3, sentences=1)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    for arguments, path, times in (
        (["--no-open"], tmp_path / "run/view.html", 0),
        (["--out", str(tmp_path / "a b/v.html")], tmp_path / "a b/v.html", 1),
    ):
        monkeypatch.setattr(sys, "argv", ["dto", "view", str(tmp_path / "run"), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        assert path.is_file() and str(path) in capsys.readouterr().out
        assert len(opened) == times
    assert opened == [(tmp_path / "a b/v.html").as_uri()]
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for target, code, said in (
        ("quickstart", 1, "no run runs/quickstart yet: start it with `dto run quickstart`"),
        ("quikstart", 1, "did you mean 'quickstart'?"),
    ):
        monkeypatch.setattr(sys, "argv", ["dto", "view", target, "--no-open"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code and said in capsys.readouterr().err
    write(tmp_path / "runs/quickstart", 1, samples=1, segments=3, sentences=1)
    for target in ("quickstart", "quickstart.yaml", "runs/quickstart"):
        (tmp_path / "runs/quickstart/view.html").unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["dto", "view", target, "--no-open"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0 and (tmp_path / "runs/quickstart/view.html").is_file()


def test_a_run_without_rows_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample/journal").write_text('{"head": {}}\n')
    (tmp_path / "recipe.yaml").write_text("name: begun\n")
    with pytest.raises(DtoError, match="no rows to show yet"):
        view(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sample", "recipe.yaml"}
    monkeypatch.setattr(sys, "argv", ["dto", "view", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def palettes() -> tuple[dict[str, str], dict[str, str]]:
    style = files("dto.viewer").joinpath("assets/view.css").read_text("utf-8")
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    return {name: light for name, light, _ in found}, {name: dark for name, _, dark in found}


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(part * c for part, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme: int) -> None:
    """WCAG AA, 4.5: each colour of text on the ground, and on a segment's tint of 7 %."""
    colours = palettes()[scheme]
    ground = rgb(colours["bg"])
    kinds = {name: rgb(colour) for name, colour in colours.items() if name.startswith("k-")}
    assert set(kinds) == {f"k-{kind}" for kind in (*KINDS, "other")}
    for name in ("text", "muted", "accent", "good", "bad", "warn"):
        assert contrast(rgb(colours[name]), ground) >= 4.5, name
        assert contrast(rgb(colours[name]), rgb(colours["panel"])) >= 4.5, name
    for name, kind in kinds.items():
        tint = tuple(0.07 * k + 0.93 * g for k, g in zip(kind, ground, strict=True))
        for shown in (kind, rgb(colours["text"]), rgb(colours["muted"])):
            assert contrast(shown, tint) >= 4.5, name


def test_each_kind_of_segment_has_a_colour() -> None:
    kinds = {segmentation.OPENING, segmentation.LOOP, *languages.KINDS, *patterns.KINDS}
    assert set(KINDS) == kinds


def test_no_local_path_is_passed_on_with_a_page(tmp_path: Path) -> None:
    """What `dto publish` cuts, the page cuts too: models, servers, and files that failures name."""
    run, model = tmp_path / "run", "/data/jane/secret-project/my-model"
    other = "/data/jane/secret-project/other"
    write(run, 2, samples=1, segments=3, sentences=1)
    (run / "recipe.yaml").write_text(
        f"name: mine\nmodel: {{name: {model}, engine: openai, server: 'http://box.lab:8000/v1'}}\n"
        f"evaluate: {{models: [base, {other}]}}\n"
    )
    for stage, record in (("sample", Trajectory), ("evaluate", EvaluationRow)):
        path = run / stage / "rows.parquet"
        failure = f"{model}/config.json, http://box.lab:8000/v1 and /home/jane/judge.py failed"
        rows = [
            replace(row, model=model, grade="failed", reason=failure)
            for row in tables.read(path, record)
        ]
        if stage == "evaluate":  # of another model, which has read the path
            rows += [
                replace(row, id=f"z{row.id}", model=other, text=f"{model} {row.text}")
                for row in rows
            ]
        tables.write(path, record, rows)
    parsed = Blocks()
    parsed.feed(view(run).read_text("utf-8"))
    packed = [parsed.texts[name] for name in parsed.texts if re.fullmatch(r"c\d+|index", name)]
    whole = " ".join(json.dumps(unpack(each)) for each in packed if each.strip())
    assert "jane" not in whole and "secret-project" not in whole and "box.lab" not in whole
    assert "my-model" in whole and "judge.py" not in whole and '"failed"' in whole
    assert "jane" in str(dto.show(run))  # here, on one's own screen, nothing is cut


def test_without_a_screen_no_browser_for_the_terminal_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 1, samples=1, segments=3, sentences=1)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("webbrowser.open", lambda url: pytest.fail("a browser was started"))
    monkeypatch.setattr(sys, "argv", ["dto", "view", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "open the file yourself" in capsys.readouterr().out


def test_where_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run", 1, samples=1, segments=3, sentences=1)
    assert view(tmp_path / "run", tmp_path) == tmp_path / "view.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DtoError, match=r"cannot write .*v\.html: .*choose a directory that you can write to"
    ):
        view(tmp_path / "run", tmp_path / "file/v.html")


def test_a_stage_that_ends_while_the_page_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, samples=1, segments=3, sentences=1)
    (tmp_path / "pair/rows.parquet").rename(tmp_path / "pair/later")
    (tmp_path / "pair/journal").write_text("")
    whole = RunTables.trajectories

    def ends(found: RunTables) -> Any:
        if (journal := tmp_path / "pair/journal").exists():
            journal.unlink()
            (tmp_path / "pair/later").rename(tmp_path / "pair/rows.parquet")
        return whole(found)

    monkeypatch.setattr(RunTables, "trajectories", ends)
    parsed = Blocks()
    parsed.feed(view(tmp_path).read_text("utf-8"))
    assert ["pair", "finished", ""] in unpack(parsed.texts["index"])["stages"]
