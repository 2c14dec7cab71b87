"""Rows processed on Ray actors: the same tables, whoever dies."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from dto.cluster import Fleet, Ray
from dto.cluster.fleet import MAX_DEATHS
from dto.cluster.places import late
from dto.cluster.seats import Seat
from dto.errors import DtoError, EngineError
from dto.pipeline import needed, open_run, run_stages
from dto.recipe import load_recipe, make_recipe
from dto.records import Problem
from dto.runs.reader import RunReader
from dto.runs.stage import Group, Runner, Stage, always
from dto.usage import Usage, charge
from tests.conftest import ROOT, SMALL

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
RayError = pytest.importorskip("ray.exceptions").RayError
ActorUnavailableError = pytest.importorskip("ray.exceptions").ActorUnavailableError


@pytest.mark.parametrize(
    ("text", "address", "actors"),
    [
        ("2", None, 2),
        ("64", None, 64),
        ("auto", "auto", 0),
        ("auto,8", "auto", 8),
        ("10.0.0.1:6379", "10.0.0.1:6379", 0),
        ("ray://head:10001,16", "ray://head:10001", 16),
    ],
)
def test_where_actors_run(text: str, address: str | None, actors: int) -> None:
    assert Ray.parse(text) == Ray(address, actors)


@pytest.mark.parametrize("text", ["0", "", "auto,", ",4", "auto,x", ",", "auto,0", "auto,-1"])
def test_a_place_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DtoError, match="number of actors"):
        Ray.parse(text)


def problem(key: str, answer: str) -> Problem:
    return Problem(key, "t", "train", f"question {key}?", answer)


def stage(work: Any) -> Stage:
    return Stage(
        name="sample",
        about="",
        amount=lambda recipe: "",
        record=Problem,
        reads=always(),
        settings=always(),
        work=work,
        needs="nothing",
    )


def groups(folder: Path, count: int) -> Iterator[Group]:
    return (Group(f"{index:04d}", (f"{index:04d}", str(folder))) for index in range(count))


async def plain(key: str, folder: str, ctx: Any) -> Problem:
    charge(Usage(requests=1, generated=3))
    await asyncio.sleep(0.005)
    return problem(key, "same for all")


async def dies_once(key: str, folder: str, ctx: Any) -> Problem:
    """Kills its own process, the first time that one of every ten groups is processed."""
    mark = Path(folder) / "died"
    if key == "0005" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return await plain(key, folder, ctx)


async def dies_always(key: str, folder: str, ctx: Any) -> Problem:
    if key == "0005":
        os.kill(os.getpid(), signal.SIGKILL)
    return await plain(key, folder, ctx)


async def misconfigured(key: str, folder: str, ctx: Any) -> Problem:
    raise EngineError("the engine gives no logprobs: use another")


async def misconfigured_later(key: str, folder: str, ctx: Any) -> Problem:
    if key == "0030" and not (Path(folder) / "mended").exists():
        await asyncio.sleep(1)  # the groups before it are finished and written
        raise EngineError("the engine gives no logprobs: use another")
    return await plain(key, folder, ctx)


async def slow(key: str, folder: str, ctx: Any) -> Problem:
    await asyncio.sleep(0.2)
    return await plain(key, folder, ctx)


async def fails(key: str, folder: str, ctx: Any) -> Problem:
    if key == "0003":
        raise ValueError("no number")
    return await plain(key, folder, ctx)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray's files are in a folder of this test, and no token is written into the home folder."""
    with TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield
        ray.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> RunReader:
    (tmp_path / "recipe.yaml").write_text("name: r\n", encoding="utf-8")
    return RunReader(tmp_path, make_recipe({"name": "r", "model": {"name": "nano"}}, {}, ""))


HERE = Ray(None, 2)
DRQA = {
    "name": "drqa", "problems.train": 8, "problems.dev": 1, "problems.test": 3,
    "sample.samples": 2, "batch.k": [2, 3], "batch.samples": 1, "evaluate.samples": 1,
    "evaluate.models": ["base"], "label.held_out": 0.3,
}  # fmt: skip


async def whole(
    run: RunReader, made: Stage, name: str, count: int = 40, where: Ray = HERE
) -> dict[str, Any]:
    with Runner(run.path / name, Problem, {"c": 1}) as runner:
        async with Fleet(where, run, False, (made,)) as fleet:
            await fleet.open(made, "base", run.path / name)
            feeding = groups(run.path, count)
            await runner.feed(feeding, made.work, window=16, elsewhere=fleet.attempt)
            return await runner.finish({"actors": fleet.shared()})


@pytest.mark.slow
async def test_the_table_is_that_of_one_process(run: RunReader) -> None:
    done = await whole(run, stage(plain), "spread")
    with Runner(run.path / "alone", Problem, {"c": 1}) as runner:
        await runner.feed(groups(run.path, 40), lambda *rows: plain(*rows, None), window=16)
        alone = await runner.finish()
    assert done["digest"] == alone["digest"] and done["rows"] == 40
    assert done["usage"] == alone["usage"]
    shares = done["actors"]
    assert sum(share["groups"] for share in shares) == 40
    assert all(share["groups"] >= 5 for share in shares)
    assert sum(share["generated"] for share in shares) == done["usage"]["generated"] == 120


@pytest.mark.slow
async def test_handlers_of_others_keep_their_format(run: RunReader) -> None:
    ray.shutdown()  # an earlier test may have started it, and only a start sets up logging
    handler = logging.NullHandler()
    handler.setFormatter(theirs := logging.Formatter("theirs %(message)s"))
    logging.getLogger("ray").addHandler(handler)
    try:
        await whole(run, stage(plain), "spread")
    finally:
        logging.getLogger("ray").removeHandler(handler)
    assert handler.formatter is theirs


@pytest.mark.slow
async def test_groups_of_a_killed_actor_are_done_again(
    run: RunReader, caplog: pytest.LogCaptureFixture
) -> None:
    done = await whole(run, stage(dies_once), "spread")
    assert (done["rows"], done["dropped"]) == (40, {})
    assert done["usage"]["generated"] == 120  # nothing is counted twice
    assert sum(share["deaths"] for share in done["actors"]) == 1
    assert "died" in caplog.text


@pytest.mark.slow
async def test_a_group_that_kills_every_actor_is_dropped(run: RunReader) -> None:
    done = await whole(run, stage(dies_always), "spread")
    assert (done["rows"], done["dropped"]) == (39, {"error": 1})  # it drops no other
    lines = (run.path / "spread" / "dropped.jsonl").read_text()
    assert '"0005"' in lines and f"died {MAX_DEATHS} times" in lines


@pytest.mark.slow
async def test_an_error_is_a_row_and_a_misconfiguration_ends_the_stage(run: RunReader) -> None:
    done = await whole(run, stage(fails), "spread")
    assert (done["rows"], done["dropped"]) == (39, {"error": 1})
    with pytest.raises(EngineError, match="gives no logprobs"):
        await whole(run, stage(misconfigured), "other")


@pytest.mark.slow
async def test_more_than_there_is_is_refused_at_once(
    run: RunReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await whole(run, stage(plain), "spread", 4)  # a cluster is there
    with pytest.raises(DtoError, match=r"64 actors with 1 CPU each were asked for, and there is"):
        async with Fleet(Ray(None, 64), run, False, ()):
            pass
    served = run.recipe.model.model_copy(
        update={"engine": "vllm", "tensor_parallel": 4, "device": "auto"}
    )
    asks_gpus = RunReader(run.path, run.recipe.model_copy(update={"model": served}))
    with pytest.raises(DtoError, match=r"1 CPU and 4 GPU each were asked for.* 0 GPU"):
        async with Fleet(Ray(None, 0), asks_gpus, False, ()):
            pass


@pytest.mark.slow
async def test_actors_that_wait_are_told_from_those_that_are_slow(
    run: RunReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await whole(run, stage(plain), "spread", 4)  # a cluster is there
    until = time.monotonic() + 60  # the cores of actors that were killed become free a little later
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < until
        await asyncio.sleep(0.1)
    monkeypatch.setattr("dto.cluster.places.START_SECONDS", 0.01)
    with pytest.raises(DtoError, match=r"have not begun in 0\.01 s, although there is 1 CPU"):
        async with Fleet(Ray(None, 2), run, False, ()):
            pass

    class Other:
        def there(self) -> int:
            return 1

    monkeypatch.setattr("dto.cluster.places.START_SECONDS", 2.0)
    cores = int(ray.cluster_resources()["CPU"])
    other = ray.remote(Other).options(num_cpus=cores).remote()
    await other.there.remote()
    try:
        with pytest.raises(DtoError, match=r"2 of 2 actors .* in 2 s: they wait for 1 CPU each"):
            async with Fleet(Ray(None, 2), run, False, ()):
                pass
    finally:
        ray.kill(other)


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [(4, 0, False), (3, 0, True), (0, 0, True), (0, 1, False), (8, 4, False)],
)
def test_why_an_actor_has_not_begun(before: int, after: int, waits: bool) -> None:
    """Four actors of a core each, by the free cores before them and at the end of the wait."""
    said = late(1, 4, {"CPU": 1}, {"CPU": before}, {"CPU": after} if after else {})
    assert ("they wait for" in said) is waits and ("slow to start" in said) is not waits


@pytest.mark.slow
async def test_a_node_without_the_run_says_so(run: RunReader, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(DtoError, match=r"does not see .*: keep the run in a folder that all"):
        async with Fleet(Ray(None, 2), run, False, ()):
            pass


ONLY_HERE = ModuleType("only_here")  # a package that no node has
exec("async def work(key, folder, ctx): ...", ONLY_HERE.__dict__)


def killed(settings: Any, name: str) -> Any:
    """An engine that takes more memory than there is."""
    os.kill(os.getpid(), signal.SIGKILL)


def broken(settings: Any, name: str) -> Any:
    raise RuntimeError("out of GPU memory")


@pytest.mark.slow
async def test_a_package_that_a_node_lacks_ends_the_run_at_once(
    run: RunReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "only_here", ONLY_HERE)
    asked = r"2 actors with 1 CPU each were asked for, and there is \S+ with \d+ CPU and 0 GPU"
    with pytest.raises(DtoError, match=rf"could not start: .*'only_here'\. {asked}"):
        await whole(run, stage(ONLY_HERE.work), "spread")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "error"),
    [
        ("killed", r"could not open the engine for stage sample: its process .* out of memory\)"),
        ("broken", r"RuntimeError: out of GPU memory \(stage sample, on \S+, with 1 CPU\)"),
    ],
)
async def test_an_engine_that_does_not_open_is_no_bad_row(
    run: RunReader, engine: str, error: str
) -> None:
    recipe = make_recipe(
        {"name": "r", "model": {"name": "nano", "engine": f"{__name__}:{engine}"}}, {}, ""
    )
    asking = replace(stage(plain), needs="model")
    with pytest.raises(DtoError, match=error):
        await whole(RunReader(run.path, recipe), asking, "spread")
    assert not (run.path / "spread" / "rows.parquet").exists()


async def test_a_cluster_without_room_for_a_dead_actor_is_told_at_once(
    run: RunReader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def restarting() -> str:
        raise ActorUnavailableError("the actor is restarting", b"1" * 16)

    monkeypatch.setattr("dto.cluster.places.nodes", list)
    fleet, actor = Fleet(HERE, run, False, ()), SimpleNamespace(place=SimpleNamespace())
    actor.place.remote = restarting
    seat = Seat(cast(Any, actor), alive=False)
    with pytest.raises(DtoError, match=r"^it asks for 1 CPU, and there is no node"):
        await fleet._back(seat)
    assert "a dead actor waits for a node with 1 CPU" in caplog.text


@pytest.mark.slow
async def test_the_manifest_has_what_each_actor_did_in_every_session(run: RunReader) -> None:
    with pytest.raises(EngineError, match="gives no logprobs"):
        await whole(run, stage(misconfigured_later), "spread")
    (run.path / "mended").touch()
    done = await whole(run, stage(misconfigured_later), "spread")
    lines = done["actors"]
    assert [line["session"] for line in lines] == [1, 1, 2, 2]
    assert sum(line["groups"] for line in lines) == done["groups"] == 40
    for amount in ("generated", "prompt", "model_flops"):
        assert sum(line[amount] for line in lines) == done["usage"][amount]
    assert all((line["seconds"] > 0) == (line["groups"] > 0) for line in lines)


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster of two nodes with a core each, and one of them."""
    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes.add_node(num_cpus=1)
        victim = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes, victim
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
async def test_rows_of_a_killed_node_are_done_again(
    run: RunReader, caplog: pytest.LogCaptureFixture
) -> None:
    with two_nodes() as (nodes, victim):

        async def kill() -> None:
            journal = run.path / "spread" / "journal"
            while not journal.is_file() or journal.read_bytes().count(b"\n") < 8:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(nodes.remove_node, victim, allow_graceful=False)

        killing = asyncio.create_task(kill())
        done = await whole(run, stage(slow), "spread", 80, Ray(nodes.address))
        await killing
    assert (done["rows"], done["dropped"], done["usage"]["generated"]) == (80, {}, 240)
    assert sum(line["groups"] for line in done["actors"]) == 80
    assert sum(line["deaths"] for line in done["actors"]) == 1
    assert "an actor on" in caplog.text and "died" in caplog.text


@pytest.mark.slow
async def test_a_stage_begins_without_the_actor_of_a_killed_node(
    run: RunReader, caplog: pytest.LogCaptureFixture
) -> None:
    with two_nodes() as (nodes, victim):
        made = stage(plain)
        async with Fleet(Ray(nodes.address), run, False, (made,)) as fleet:
            assert fleet.size == 2
            await asyncio.to_thread(nodes.remove_node, victim, allow_graceful=False)
            with pytest.raises(RayError):  # its actor lives on for some seconds
                while True:
                    await asyncio.gather(*(fleet._call(seat.actor.place) for seat in fleet.alive))
                    await asyncio.sleep(0.1)
            with Runner(run.path / "spread", Problem, {"c": 1}) as runner:
                await asyncio.wait_for(fleet.open(made, "base", run.path / "spread"), 120)
                feeding = groups(run.path, 40)
                await runner.feed(feeding, made.work, window=16, elsewhere=fleet.attempt)
                done = await runner.finish({"actors": fleet.shared()})
    assert (done["rows"], done["dropped"]) == (40, {})
    assert sorted(line["groups"] for line in done["actors"]) == [0, 40]
    assert "a dead actor waits for a node with 1 CPU" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "last"),
    [
        ("quickstart", SMALL, ("pair", "evaluate")),
        ("drqa", DRQA, ("label", "evaluate")),
    ],
)
def test_all_stages_have_the_tables_of_one_process(
    name: str, changes: dict[str, Any], last: tuple[str, ...], tmp_path: Path, small_run: Path
) -> None:
    recipe = load_recipe(ROOT / "pipelines" / f"{name}.yaml", changes)
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    if name == "quickstart":
        alone = small_run
    else:
        with closing(open_run(alone, recipe)) as opened:
            run_stages(opened, needed(recipe, *last))
    with closing(open_run(spread, recipe)) as opened:
        if "train" in needed(recipe, *last):  # its weights are kept only if its data are the same
            run_stages(opened, needed(recipe, "pair"), ray=HERE)
            shutil.copytree(alone / "train", spread / "train")
        run_stages(opened, needed(recipe, *last), ray=HERE)
    for stage in needed(recipe, *last):
        kept = [RunReader(each).manifest(stage) or {} for each in (alone, spread)]
        assert kept[0]["digest"] == kept[1]["digest"], stage
        if stage != "train":
            table = f"{stage}/rows.parquet"
            assert (alone / table).read_bytes() == (spread / table).read_bytes(), stage
            spent = [done["usage"]["generated"] for done in kept]
            assert spent[0] == spent[1], stage
            if actors := kept[1].get("actors"):
                assert sum(each["generated"] for each in actors) == spent[1]
                assert all(each["groups"] for each in actors), stage


TABLES = ("sample", "segment", "estimate", "optimize", "prune", "pair", "evaluate")
PROGRAM = """
import sys
from pathlib import Path
from dto.api import find_recipe
from dto.cluster import Ray
from dto.pipeline import needed, open_run, run_stages

changes = {"problems.train": 10, "problems.dev": 1, "problems.test": 3, "sample.samples": 2,
           "evaluate.samples": 1, "evaluate.models": ["base"]}
recipe, _ = find_recipe("quickstart", changes)
run = open_run(Path(sys.argv[1]), recipe)
ray = Ray(None, int(sys.argv[2])) if sys.argv[2:] else None
run_stages(run, needed(recipe, "pair", "evaluate"), ray=ray)
run.close()
"""


def children(pid: int) -> list[int]:
    """The processes below a process."""
    below = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            below += [int(child), *children(int(child))]
    return below


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the actors in /proc")
def test_a_run_whose_actor_and_driver_are_killed(tmp_path: Path) -> None:
    """The tables are those of a run in one process."""
    spread, alone = tmp_path / "spread", tmp_path / "alone"
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", PROGRAM, str(spread), "2"]
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        journal, kills = spread / "sample" / "journal", 0
        until = time.monotonic() + 120
        while time.monotonic() < until and driver.poll() is None and kills < 2:
            lines = journal.read_bytes().count(b"\n") if journal.is_file() else 0
            if kills == 0 and lines > 1:
                actors = [pid for pid in children(driver.pid) if _is_actor(pid)]
                os.kill(actors[0], signal.SIGKILL)
                kills = 1
            elif kills == 1 and lines > 4:
                driver.kill()
                kills = 2
            time.sleep(0.02)
        driver.wait()
    assert kills == 2, (tmp_path / "log").read_text()
    for arguments in ([str(spread), "2"], [str(alone)]):
        command = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in TABLES:
        table = f"{name}/rows.parquet"
        assert (spread / table).read_bytes() == (alone / table).read_bytes(), name
    kept = [RunReader(each).manifest("sample") or {} for each in (spread, alone)]
    assert kept[0]["usage"]["generated"] == kept[1]["usage"]["generated"]


def _is_actor(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker")
    except OSError:
        return False


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes; Slurm and Ray are stand-ins that note what they get.

    `srun` starts what it is given, once, and `ray` goes on until it is ended.
    """
    bin = tmp_path / "programs of a job"
    bin.mkdir()
    noted = tmp_path / "noted"
    program(
        bin / "scontrol",
        f'if [ "$1" = requeue ]; then echo "requeue $2" >> "{noted}"; else echo node-1; fi',
    )
    program(
        bin / "srun",
        f'echo "srun $*" >> "{noted}"\nwhile [ "${{1#--}}" != "$1" ]; do shift; done\nexec "$@"',
    )
    program(
        bin / "ray",
        f'echo "ray $*" >> "{noted}"\ntrap \'echo ray ended >> "{noted}"; exit\' TERM\n'
        "while :; do sleep 0.1; done",
    )
    program(bin / "python", "exec cat > /dev/null")  # all nodes have joined
    dto = f'exec "{sys.executable}" -c "from dto.cli import main; main()" "$@"'
    program(bin / "dto", f'echo "dto $*" >> "{noted}"\n{dto}')
    job = {"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8"}
    return {**os.environ, **job, "PATH": f"{bin}:{os.environ['PATH']}"}


SCRIPT = Path(__file__).parents[1] / "pipelines" / "cluster" / "dto.sbatch"


def test_the_batch_script_runs_a_recipe_on_the_cluster(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    """The plan is dto's own, of a recipe in a folder with a blank in its name."""
    recipe = tmp_path / "my recipes" / "one.yaml"
    recipe.parent.mkdir()
    recipe.write_bytes((SCRIPT.parents[1] / "quickstart.yaml").read_bytes())
    command = ["bash", str(SCRIPT), str(recipe), "--dry-run", "--set", "sample.samples=3"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "samples=3" in done.stdout and "evaluate" in done.stdout
    noted = (tmp_path / "noted").read_text()
    own = "--block --num-gpus=8 --num-cpus=64 --min-worker-port=0 --max-worker-port=0"
    assert f"ray start {own} --dashboard-agent-listen-port=20015 --head --port=20014" in noted
    assert f"ray start {own} --dashboard-agent-listen-port=20015 --address=node-1:20014" in noted
    assert "--nodelist=node-1" in noted and "--exclude=node-1" in noted
    assert f"dto run {recipe} --ray node-1:20014 --dry-run --set sample.samples=3" in noted
    assert noted.count("ray ended") == 2 and "requeue" not in noted
    without = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert without.returncode != 0 and "name a recipe" in without.stderr


@pytest.mark.parametrize(("sent", "again"), [("USR1", True), ("TERM", False)])
def test_the_batch_script_passes_signals_on(
    tmp_path: Path, slurm: dict[str, str], sent: str, again: bool
) -> None:
    """Before the time limit the run is interrupted and queued again; a cancelled one is not."""
    noted = tmp_path / "noted"
    interrupted = f"trap 'echo interrupted >> \"{noted}\"; exit 130' INT"
    program(
        tmp_path / "programs of a job" / "dto",
        f'{interrupted}\necho "dto $*" >> "{noted}"\nwhile :; do sleep 0.1; done',
    )
    job = subprocess.Popen(["bash", str(SCRIPT), "one.yaml"], env=slurm, cwd=tmp_path)
    until = time.monotonic() + 30
    while "dto run" not in (noted.read_text() if noted.exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.05)
    job.send_signal(getattr(signal, f"SIG{sent}"))
    assert job.wait(30) == 130
    text = noted.read_text()
    assert text.count("interrupted") == 1 and text.count("ray ended") == 2
    assert ("requeue 7" in text) is again


def test_the_batch_script_asks_ray_and_slurm_for_what_they_have() -> None:
    from ray.scripts.scripts import cli

    text = SCRIPT.read_text(encoding="utf-8")
    node = text[text.index("node='") : text.index("# The cluster is whole")]
    starts = set(re.findall(r"--[a-z-]+", node)) - {
        "--ntasks-per-node", "--cpus-per-task", "--overlap", "--nodes", "--ntasks", "--nodelist",
        "--exclude",
    }  # fmt: skip
    options = {option for each in cli.commands["start"].params for option in each.opts}
    assert {"--head", "--port", "--temp-dir", "--num-gpus"} <= starts <= options
    directives = dict(re.findall(r"#SBATCH --([a-z-]+)(?:=(\S+))?", text))
    assert directives["signal"] == "B:USR1@120" and "requeue" in directives
    assert directives["open-mode"] == "append"
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, str(SCRIPT)], check=True)
