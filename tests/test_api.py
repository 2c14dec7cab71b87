"""The public face of `import dto`, for a type checker and for programs elsewhere."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import dto
from dto.api import run_async
from dto.cli import main
from dto.errors import RecipeError, RunConflictError
from dto.records import Dropped
from tests import warm

DOCUMENT = Path(__file__).parent.parent / "docs" / "python.md"
MOST_LINES = 10
PUBLIC = """
    __version__
    run Run load_recipe segment_text ThinkingPattern grade grade_async Graded pairs_from
    sample batch segment estimate optimize prune pair label train evaluate report trace pilot
    show view Report
    Recipe ModelSettings Settings DtoError
    Context Grader Engine open_engine Sampling Completion Chunk Capabilities
    ExitPolicy ResponsePath ExitedResponse Rewarded Task
    Problem Trajectory Segment Span ExitEstimate Verdict OptimizedTrajectory PreferencePair
    BatchResponse Chain LabelledChain Trial EvaluationRow Dropped
    open_model OpenModel stream answer answer_async Thinking Tried Left Answering Reply Tokens
"""


def test_these_names_are_public_and_no_others() -> None:
    assert sorted(dto.__all__) == dir(dto) == sorted(PUBLIC.split())
    for name in dto.__all__:
        assert getattr(dto, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dto.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_names_that_programs_get() -> None:
    tree = ast.parse(Path(dto.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # re-exported, also under mypy --strict
            typed[alias.name] = node.module
    assert typed == dto._PUBLIC


USER = """
import dto

async def work(problem: dto.Problem, ctx: dto.Context) -> None:
    reveal_type(await dto.sample(problem, ctx))
    reveal_type((await dto.grade_async("5", "5")).answer)

run = dto.run("quickstart", {"problems.train": 12})
reveal_type(run)
reveal_type(run.report())
reveal_type(run.model_path)
reveal_type(run.trajectories())
reveal_type(dto.load_recipe("quickstart"))
reveal_type(dto.segment_text("5")[0].kind)
reveal_type(dto.grade("5", "5").grade)
reveal_type(dto.Sampling(5).seed)
dto.run(5)
dto.segment_text("5", granularity="word")
dto.grade("5", 5)
dto.Problem("a")
dto.nothing
"""
REVEALED = [
    "list[dto.records.Trajectory | dto.records.Dropped]",
    "str",
    "dto.api.Run",
    "dto.reporting.report.Report",
    "pathlib.Path",
    "Iterator[dto.records.Trajectory]",
    "dto.recipe.Recipe",
    "str",
    "Literal['correct'] | Literal['wrong'] | Literal['truncated'] | Literal['failed']",
    "int",
]
MISTAKES = ["arg-type", "arg-type", "arg-type", "call-arg", "attr-defined"]


@pytest.mark.slow
def test_a_type_checker_elsewhere_sees_types(tmp_path: Path) -> None:
    """Libraries that dto imports are skipped: mypy would read them for minutes."""
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    libraries = "torch transformers datasets polars pyarrow spacy numpy trl rich openai pydantic"
    skipped = ",".join(f"{name}.*" for name in libraries.split())
    settings = f"[mypy-{skipped}]\nfollow_imports = skip\nignore_missing_imports = true\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n{settings}", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "user.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    revealed = re.findall(r'Revealed type is "(.*)"', checked.stdout)
    revealed = [text.removeprefix("typing.").replace("builtins.", "") for text in revealed]
    assert revealed == REVEALED, checked.stdout + checked.stderr
    assert re.findall(r"error: .*\[([\w-]+)\]", checked.stdout) == MISTAKES, checked.stdout


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "baselines/sft", "compare"])
def test_packaged_recipes_go_by_name_from_anywhere(name: str, elsewhere: Path) -> None:
    assert dto.load_recipe(name, {"seed": 7}).seed == 7


def test_a_recipe_that_does_not_exist(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library and the command line look in the same places, and say the same."""
    with pytest.raises(RecipeError, match="quickstrat") as error:
        dto.load_recipe("quickstrat")
    assert "did you mean 'quickstart'?" in str(error.value)
    sys.argv = ["dto", "run", "quickstrat"]
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == f"dto: error: {error.value}\n"


def test_a_file_beside_the_program_comes_first(elsewhere: Path) -> None:
    (elsewhere / "quickstart.yaml").write_text("seed: 3\n", encoding="utf-8")
    assert dto.load_recipe("quickstart.yaml").seed == 3
    assert dto.load_recipe("quickstart").problems.source == "chains"


def programs() -> dict[str, list[str]]:
    """The Python programs of each section of the document."""
    parts = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    block = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    return {part.partition("\n")[0]: block.findall(part) for part in parts}


RUN, SEGMENT, GRADE, PAIRS, OWN, STAGES = programs()


def test_the_programs_are_short() -> None:
    for title, codes in programs().items():
        for code in codes:
            lines = [line for line in code.splitlines() if line.strip() and line[0] != "#"]
            assert title == STAGES or len(lines) <= MOST_LINES, code


SMALL = {
    "problems.train": 6,
    "problems.dev": 4,
    "problems.test": 4,
    "sample.samples": 3,
    "sample.max_tokens": 256,
    "estimate.threshold": 0.3,
    "estimate.margin": 0.2,
    "estimate.cap": 8,
    "train.learning_rate": 1e-6,
    "train.epochs": 1,
    "train.evaluations": 1,
    "train.dev_samples": 1,
    "evaluate.samples": 1,
    "evaluate.exits": [{"name": "none"}],
}
PROBLEMS = ("train", "dev", "test")


def script(folder: Path, code: str) -> str:
    """Run a program as a user does: a file without a guard, in a folder of its own."""
    (folder / "program.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first program has run, with fewer problems, and its responses are a file."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (code,) = programs()[RUN]
    changes = ", ".join(f'"problems.{name}": 12' for name in PROBLEMS)
    assert changes in code
    printed = script(folder, code.replace("{" + changes + "}", repr(SMALL)))
    assert printed.startswith("quickstart: 4 test problems × 1 sample\n")
    assert "runs/quickstart/train/model\n" in printed
    run = dto.Run(folder / "runs/quickstart")
    problems = {row.id: row for row in run.rows("problems", dto.Problem)}
    with (folder / "responses.jsonl").open("w", encoding="utf-8") as lines:
        for row in run.trajectories():
            problem = problems[row.problem_id]
            columns = {"question": problem.question, "answer": problem.answer}
            lines.write(json.dumps(columns | {"response": row.text}) + "\n")
    return folder


@pytest.mark.slow
def test_a_finished_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = dto.Run("runs/quickstart")
    trajectories = {row.id: row for row in run.trajectories()}
    assert len(trajectories) == 6 * 3
    assert run.report() == dto.report(run.path)
    assert run.model_path == Path("runs/quickstart/train/model")
    assert (run.model_path / "model.safetensors").is_file()
    assert "Original" in str(run.show()) and run.show()._repr_html_()
    pairs = run.pairs()
    assert len(pairs) == run.count("pair") > 0
    optimized = {row.id: row for row in run.rows("prune", dto.OptimizedTrajectory)}
    for pair in pairs:
        chosen = optimized if pair["chosen_from"] == "optimized" else trajectories
        assert tuple(pair["chosen_ids"]) == chosen[pair["chosen_id"]].token_ids
        assert tuple(pair["rejected_ids"]) == trajectories[pair["rejected_id"]].token_ids
        assert tuple(pair["prompt_ids"]) == trajectories[pair["trajectory_id"]].prompt_ids
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == pairs.to_list()


@pytest.mark.slow
def test_trl_trains_on_the_pairs(folder: Path, tmp_path: Path) -> None:
    """Its own tokenizing of the text gives the stored tokens, with an end token where one lacks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    run = dto.Run(folder / "runs/quickstart")
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    model = AutoModelForCausalLM.from_pretrained(run.model_path)
    settings = DPOConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none",
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=None,
    )  # fmt: skip
    pairs = run.pairs()
    trainer = DPOTrainer(model, args=settings, train_dataset=pairs, processing_class=tokenizer)
    end = tokenizer.eos_token_id
    for ours, theirs in zip(pairs, trainer.train_dataset, strict=True):
        assert theirs["prompt_ids"] == ours["prompt_ids"]
        for side in ("chosen_ids", "rejected_ids"):
            ids = ours[side] if ours[side][-1] == end else [*ours[side], end]
            assert theirs[side] == ids
    assert trainer.train().global_step == 1


@pytest.mark.slow
async def test_a_run_is_resumed_where_a_loop_is_running(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    caplog.set_level(logging.INFO, "dto")
    before = (folder / "runs/quickstart/train/manifest.json").read_bytes()
    run = dto.run(dto.load_recipe("quickstart"), SMALL)
    assert str(run.path) == "runs/quickstart"
    assert sum(line.endswith("already finished") for line in caplog.messages) == 9
    assert (run.path / "train/manifest.json").read_bytes() == before
    with pytest.raises(RunConflictError, match="would compute again sample"):
        dto.run("runs/quickstart", {"sample.temperature": 0.5})
    with pytest.raises(dto.DtoError, match="compares methods: start it with `dto run`"):
        dto.run("compare")


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_no_run_directory(what: str, tmp_path: Path) -> None:
    if what == "a file":
        (tmp_path / "nothing").write_text("")
    with pytest.raises(dto.DtoError, match="nothing is not a run directory"):
        dto.Run(tmp_path / "nothing")


def test_a_run_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: r\n", encoding="utf-8")
    run = dto.Run(tmp_path)
    with pytest.raises(dto.DtoError, match="has no trained model yet"):
        _ = run.model_path
    with pytest.raises(dto.DtoError, match="pair"):
        run.pairs()
    with pytest.raises(dto.DtoError, match="dto evaluate"):
        run.report()


PRINTED = [
    (SEGMENT, 0, "opening  (7, 18) '\\nIt is 5.\\n\\n'\nverification Wait (18, "),
    (GRADE, 0, "Graded(grade='correct', answer='0.5', reason='')\ncorrect\nwrong\n"),
    (GRADE, 1, "['correct', 'correct', 'wrong']\n"),
    (PAIRS, 0, "<|im_start|>user\nStart with"),
    (PAIRS, 1, ""),
    (STAGES, 0, ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("title", "number", "printed"), PRINTED)
@pytest.mark.parametrize("looping", [False, True], ids=["script", "notebook"])
def test_a_program_of_the_document(
    title: str,
    number: int,
    printed: str,
    looping: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    code = programs()[title][number]
    flags = 0
    if looping:
        code = code.replace("asyncio.run(main())", "await main()")
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

    async def cell() -> None:
        result = eval(compile(code, "cell", "exec", flags), {"__name__": "__main__"})
        if isinstance(result, Coroutine):
            await result

    asyncio.run(cell()) if looping else exec(compile(code, "script", "exec"), {})
    assert printed in capsys.readouterr().out.replace("Span(start=", "(").replace("end=", "")


@pytest.mark.slow
def test_a_task_a_rule_and_a_reward_of_a_module(tmp_path: Path) -> None:
    module, code = programs()[OWN]
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.M | re.S)
    for name, text in (("mine.py", module), ("mine.yaml", recipe)):
        assert text.startswith(f"# {name}\n")
        (tmp_path / name).write_text(text, encoding="utf-8")
    small = SMALL | {"train.response_tokens": 64}
    program = code.replace('"mine.yaml"', f'"mine.yaml", {small}')
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    done = warm.run(warm.script, ["program.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert printed.startswith("mine: 4 test problems × 1 sample\n")
    run = dto.Run(tmp_path / "runs/mine")
    assert {(row.task, row.rule) for row in run.rows("problems", dto.Problem)} == {
        ("sums", "mine:same")
    }
    assert run.recipe.train.reward == "mine:brief" and run.model_path.is_dir()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_pairs_from_rows_with_faults(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dto")
    rows = [{"question": "2 + 3?"}, *rows_of(folder)]
    pairs = dto.pairs_from(iter(rows), "nano", data="shortest", out=tmp_path / "out")
    assert set(pairs["chosen_from"]) == {"shortest_correct"}
    assert "sample dropped 1: missing_field, such as" in caplog.text
    (dropped,) = dto.Run(tmp_path / "out").dropped("sample")
    assert isinstance(dropped, Dropped) and "row 1: no response" in dropped.detail
    again = dto.pairs_from(rows, "nano", data="shortest", out=tmp_path / "out")
    assert again.to_list() == pairs.to_list()
    with pytest.raises(RunConflictError, match="pairs of other rows"):
        dto.pairs_from(rows[1:], "nano", data="shortest", out=tmp_path / "out")


def test_pairs_from_preferences(folder: Path) -> None:
    response = "<think>\nIt is 5.\n</think>\n\nIt is \\boxed{5}."
    row = {"prompt": "2 + 3?", "chosen": response, "rejected": response.replace("5", "6")}
    (pair,) = dto.pairs_from([row], "nano")
    assert pair["chosen_from"] == "imported"
    assert pair["prompt"].rstrip().endswith("<think>")  # the template opens the thinking
    assert pair["chosen"] == response.removeprefix("<think>\n")


NO_PAIRS = [
    ([], "has no row that can be read: it is empty"),
    ([{"question": "2 + 3?"}], "row 1: no response"),
    (
        [{"question": "2 + 3?", "response": "<think>\n5\n</think>\n\n5"}],
        r"1 responses are 1 failed; .*pair dropped 1: no_pair",
    ),
]


@pytest.mark.parametrize(("rows", "message"), NO_PAIRS, ids=["none", "unreadable", "without gold"])
def test_no_pair_is_an_error_with_its_reasons(rows: list[dict[str, str]], message: str) -> None:
    with pytest.raises(dto.DtoError, match=message):
        dto.pairs_from(rows, "nano", data="shortest")


THINKING = "It is 5.\n\nWait, let me check. 2 + 3 is 5.\n"
TEXTS = [
    (f"<think>\n{THINKING}</think>\n\n5", ["\nIt is 5.\n\n", THINKING[10:]]),
    (f"{THINKING}</think>\n\n5. Wait, no.", ["It is 5.\n\n", THINKING[10:]]),
    (f"Well. <think>{THINKING}", ["It is 5.\n\n", THINKING[10:]]),
    (THINKING, ["It is 5.\n\n", THINKING[10:]]),
    ("<think></think>5", []),
    ("", []),
]


@pytest.mark.parametrize(("text", "patterns"), TEXTS)
def test_segment_text(text: str, patterns: list[str]) -> None:
    found = dto.segment_text(text)
    assert [pattern.text for pattern in found] == patterns
    assert [text[slice(*pattern.chars)] for pattern in found] == patterns
    kinds = [("opening", ""), ("verification", "Wait")][: len(patterns)]
    assert [(pattern.kind, pattern.cue) for pattern in found] == kinds


GRADES = [
    ("It is \\boxed{5}.", "5", "correct"),
    ("5", "5", "correct"),
    ("6", "5", "wrong"),
    ("<think>\n5\n</think>\n\nIt is \\boxed{6}.", "5", "wrong"),
    ("5\n</think>\n\n6", "6", "correct"),
    ("<think>\nIt is \\boxed{5}.", "5", "truncated"),
    ("5", "", "failed"),
    ("", "5", "wrong"),
]


@pytest.mark.parametrize(("response", "gold", "wanted"), GRADES)
async def test_grade(response: str, gold: str, wanted: str) -> None:
    assert dto.grade(response, gold).grade == wanted  # where a loop is running
    assert (await asyncio.to_thread(dto.grade, response, gold)).grade == wanted
    assert (await dto.grade_async(response, gold)).grade == wanted


def test_the_question_and_the_rule_count() -> None:
    assert dto.grade("27", "27%").grade == "wrong"
    assert dto.grade("27", "27%", question="What percentage is it?").grade == "correct"
    assert dto.grade("(B)", "B", rule="choice").grade == "correct"
    assert dto.grade("b", "B", rule="operator:ne").grade == "correct"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("choise", "no rule 'choise' .did you mean 'choice'"),
        ("no.such:rule", "module 'no' is not installed"),
    ],
)
def test_an_unknown_rule(rule: str, message: str) -> None:
    with pytest.raises(dto.DtoError, match=message):
        dto.grade("5", "5", rule=rule)


async def test_an_error_of_a_coroutine_comes_through() -> None:
    async def work() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run_async(work())


def test_ctrl_c_cancels_the_work_of_another_loop() -> None:
    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(0.2)  # until the other thread waits
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_async(work())

    asyncio.run(cell())
    assert cancelled == [True]


@pytest.mark.slow
def test_progress_is_logged_only_where_nobody_set_up_logging(folder: Path) -> None:
    again = f"import dto\ndto.run('quickstart', {SMALL!r})\n"
    quiet = "import logging\nlogging.getLogger('dto').setLevel('WARNING')\n"
    for before, lines in (("", 9), (quiet, 0)):
        (folder / "again.py").write_text(before + again, encoding="utf-8")
        command = [sys.executable, "again.py"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout == ""
        assert done.stderr.count("already finished") == len(done.stderr.splitlines()) == lines
