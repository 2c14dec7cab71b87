"""An engine beside the training: a stand-in for vLLM, which reads the weights that are handed over.

What vLLM itself does with them is in tests/vllm/test_beside.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen2ForCausalLM

from dto.context import Context
from dto.drqa.records import LabelledChain
from dto.engines.models import load_model, load_tokenizer
from dto.engines.transformers import TransformersEngine
from dto.errors import DtoError, EngineError
from dto.recipe import Recipe, load_recipe
from dto.runs.reader import RunReader
from dto.runs.run import settings_read
from dto.tables import read
from dto.training import beside as besides
from dto.training import grpo
from dto.training.beside import (
    Beside,
    HandedEngine,
    write_adapters,
    write_weights,
)
from dto.training.checkpoints import step_line
from dto.training.dev import Judgement, measure
from dto.training.devices import visible_devices
from dto.training.fit import fingerprint, fit
from dto.training.pairs import Material
from dto.training.train import STAGE
from dto.training.weights import load, with_adapters
from tests import warm
from tests.training.conftest import RunFolder, make_run, tiny_model
from tests.training.test_grpo import GROUPS, KL, advantages, perturb
from tests.training.test_judging import with_labels
from tests.training.test_losses import logprobs


class StandIn:
    """Serves the folder that was handed over; `dies_at` is the use at which it dies."""

    adapters = False
    dtype = torch.float32
    dies_at = 0
    uses = 0

    def __init__(self, recipe: Recipe, trained: int) -> None:
        self.recipe = recipe
        self.engine: Any = None

    async def __aenter__(self) -> StandIn:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def take(self, folder: Path) -> None:
        type(self).uses += 1
        if self.uses == self.dies_at:
            raise EngineError("vLLM's core died")
        base = self.recipe.model.name if self.adapters else str(folder)
        model: Any = load_model(base, dtype=torch.float32)
        if self.adapters:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
        words = load_tokenizer(self.recipe.model)
        self.engine = TransformersEngine(self.recipe.model, loaded=(model, words))
        await self.engine.__aenter__()

    async def sleep(self) -> None:
        await self.engine.__aexit__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    class Own(StandIn):
        pass

    monkeypatch.setattr(besides, "HandedEngine", Own)
    return Own


def lines(run: RunFolder, name: str) -> list[dict[str, Any]]:
    text = (run.path / "train" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


ALWAYS = {"keep": "last", "collapse_points": 200.0, "collapse_truncated": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "adapters"), [(0, False), (2, False), (2, True)])
def test_dev_scores_and_weights_are_those_without_it(
    rank: int,
    adapters: bool,
    run: RunFolder,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    stand_in: type[StandIn],
) -> None:
    """It gets the weights of each checkpoint, and the training does not notice it."""
    if rank:
        pytest.importorskip("peft", reason="peft is not installed")
    stand_in.adapters = adapters
    settings = ALWAYS | {"lora_rank": rank, "evaluations": 1, "epochs": 1, "learning_rate": 5e-2}
    plain = make_run(tmp_path / "plain", tokenizer, model_folder).with_training(**settings)
    fit(plain.path, plain.recipe)
    training = run.with_training(**settings, engine="vllm")
    fit(training.path, training.recipe)
    assert stand_in.uses == 2
    scores = lines(training, "history.jsonl")
    assert scores == lines(plain, "history.jsonl")
    assert len({score["tokens_mean"] for score in scores}) > 1  # the weights did change
    for name in ("config.json", "model.safetensors"):
        one, other = (each.path / "train" / "model" / name for each in (training, plain))
        assert one.read_bytes() == other.read_bytes()
    assert not list((run.path / "train").glob("*handed*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cft", "drqa"])
def test_dev_responses_and_judgements_share_a_hand_over(
    method: str,
    run: RunFolder,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    model_folder: Path,
    stand_in: type[StandIn],
) -> None:
    """A step of drqa has one of its own, since an optimizer step lies between."""
    settings = ALWAYS | {"method": method, "evaluations": 1, "epochs": 0.5, "learning_rate": 5e-2}
    plain = make_run(tmp_path / "plain", tokenizer, model_folder)
    plain = with_labels(plain, tokenizer, **settings)
    fit(plain.path, plain.recipe)
    training = with_labels(run, tokenizer, **settings, engine="vllm")
    fit(training.path, training.recipe)
    steps = len(lines(training, "steps.jsonl"))
    assert steps >= 2
    assert stand_in.uses == 2 + (steps if method == "drqa" else 0)
    scores = lines(training, "judging.jsonl")
    assert (len(scores) == 2 and scores == lines(plain, "judging.jsonl")) or method == "drqa"


@pytest.mark.parametrize(("split", "share"), [("", 1), ("fsdp", 4), ("deepspeed", 4)])
def test_a_process_holds_its_share_of_the_optimizer(
    split: str, share: int, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(besides, "sharding", lambda: split)
    world = SimpleNamespace(num_processes=4, is_main_process=True, process_index=0)
    monkeypatch.setattr(besides, "PartialState", lambda: world)
    model = load(run.recipe)[0]
    whole = sum(part.numel() for part in model.parameters())
    assert Beside(run.recipe, model, run.path)._trained == whole // share


@pytest.mark.slow
def test_an_engine_that_dies_loses_no_checkpoint(run: RunFolder, stand_in: type[StandIn]) -> None:
    training = run.with_training(**ALWAYS, engine="vllm", evaluations=2, epochs=2)
    stand_in.dies_at = 3
    with pytest.raises(EngineError, match="core died"):
        fit(training.path, training.recipe)
    assert [score["step"] for score in lines(run, "history.jsonl")] == [0, 6]
    fit(training.path, training.recipe)
    assert [score["step"] for score in lines(run, "history.jsonl")] == [0, 6, 12]
    assert stand_in.uses == 4  # the base and the first checkpoint are not measured again


@pytest.mark.slow
def test_grpo_knows_the_probabilities_that_it_was_sampled_with(
    run: RunFolder, stand_in: type[StandIn]
) -> None:
    training = run.with_training(
        **ALWAYS, engine="vllm", method="grpo", group=2, batch_size=4, epochs=0.25, evaluations=1
    )
    fit(training.path, training.recipe)
    steps = lines(run, "steps.jsonl")
    assert len(steps) == 3
    assert all(step["importance_ratio"] == pytest.approx(1.0, abs=1e-3) for step in steps)


def test_a_response_is_weighed_by_the_ratio_of_trainer_over_engine(
    run: RunFolder, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The ratio of the whole response, without gradient; 0 above 3; the divergence has none."""
    training = with_labels(run, tokenizer, group=4, batch_size=8, kl=KL, no_letter=-0.5)
    rows = list(read(run.path / "label" / "rows.parquet", LabelledChain))
    kinds = dict(zip((rows[1].id, rows[2].id), GROUPS, strict=True))
    shifts = {(5, 6): 0.2, (7, 8, 9): -0.1, (10,): 1.5, (8, 9): 0.7}  # exp(1.5), exp(1.4) > 3
    model, _ = load(training.recipe)

    async def scripted(row: LabelledChain, ctx: Context) -> list[Judgement]:
        for _, ids in GROUPS[kinds[row.id]]:
            with torch.no_grad():
                own = logprobs(model, row.prompt_ids, ids) if ids else torch.zeros(0)
            sampled = tuple((own - shifts.get(ids, 0.0)).tolist())
            ctx.engine.logprobs[ids] = sampled  # type: ignore[attr-defined]
        return [Judgement(row.id, ids, "A", pick) for pick, ids in GROUPS[kinds[row.id]]]

    args = grpo.OnlineTrainer.config(training.recipe, tmp_path)
    trainer = grpo.OnlineTrainer(training.recipe, model, args, tokenizer, rows, [1, 2])
    trainer.beside = SimpleNamespace(  # type: ignore[assignment]
        answer=lambda model, rows, answers: asyncio.run(answers(SimpleNamespace(), rows))
    )
    perturb(model)
    model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "judge", scripted)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, batch)
    model.zero_grad()
    loss.backward()
    found = [each.grad.clone() for each in model.parameters() if each.grad is not None]

    reference, _ = load(training.recipe)
    end = int(tokenizer.eos_token_id)
    terms, ratios = [], []
    for row in rows[1:3]:
        group = GROUPS[kinds[row.id]]
        own = advantages([pick for pick, _ in group])
        for advantage, (_, ids) in zip(own, group, strict=True):
            side = (row.prompt_ids, ids or (end,))
            policy = logprobs(model, *side)
            with torch.no_grad():
                base = logprobs(reference, *side)
            total = shifts.get(ids, 0.0) * len(ids)
            weight = float(torch.exp(torch.tensor(total)))
            weight = 0.0 if weight > 3 else weight
            ratios.append(weight)
            ratio = torch.exp(policy - policy.detach())
            divergence = torch.exp(base - policy) - (base - policy) - 1
            terms.append(ratio * (KL * divergence - weight * advantage))
    assert 0.0 in ratios and 1.0 in ratios and len(set(ratios)) == 4
    expected = torch.cat(terms).mean()
    model.zero_grad()
    expected.backward()
    wanted = [each.grad for each in model.parameters() if each.grad is not None]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    logs = {name: fmean(values) for name, values in trainer._metrics["train"].items() if values}
    assert step_line(1, logs)["importance_ratio"] == pytest.approx(fmean(ratios), abs=1e-4)
    assert "importance_ratio" not in step_line(1, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_all_weights_are_written_with_a_tied_head_apart(
    dtype: torch.dtype, tied: bool, tmp_path: Path
) -> None:
    config = tiny_model(64).config
    config.tie_word_embeddings = tied
    model = Qwen2ForCausalLM(config)
    write_weights(model, tmp_path / "handed", dtype)
    files = {path.name: load_file(path) for path in (tmp_path / "handed").glob("*.safetensors")}
    assert set(files) == {"model.safetensors", *(["tied.safetensors"] if tied else [])}
    written = {name: each for weights in files.values() for name, each in weights.items()}
    assert sum(map(len, files.values())) == len(written)  # none twice
    expected = model.state_dict()
    assert written.keys() == expected.keys()
    for name, each in written.items():
        assert each.dtype == dtype and torch.equal(each, expected[name].to(dtype))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "handed")
    assert torch.equal(again.lm_head.weight, written["lm_head.weight"])


def test_adapters_are_written_as_peft_reads_them(run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from peft import PeftModel

    training = run.with_training(lora_rank=2)
    adapted = with_adapters(load(training.recipe)[0], training.recipe)
    with torch.no_grad():
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.add_(0.1)
    write_adapters(adapted, tmp_path / "handed")
    base = load(training.recipe)[0]
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = base(input_ids=ids).logits
    again = PeftModel.from_pretrained(base, tmp_path / "handed").eval()
    assert torch.equal(again(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits)
    assert not torch.allclose(again(input_ids=ids).logits, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("gpus", "processes", "visible", "expected"),
    [
        ((1,), 1, ["0", "1"], "1"),
        ((2, 1), 1, ["0", "1", "2"], "2,1"),
        ((1, 2), 1, ["4", "5", "7"], "5,7"),  # of those that CUDA_VISIBLE_DEVICES names
        ((2,), 2, ["0", "1", "GPU-a"], "GPU-a"),
        ((0,), 1, ["0", "1"], "names GPU 0, and GPU 0 trains"),
        ((1,), 2, ["0", "1", "2"], "names GPU 1, and GPUs 0 to 1 train"),
        ((3,), 1, ["0", "1"], "names GPU 3, and this machine shows 2"),
        ((1,), 1, [], "names GPU 1, and this machine shows 0"),
        ((1, 1), 1, ["0", "1"], "names GPU 1, and that twice"),
    ],
)
def test_gpus_of_the_engine(
    gpus: tuple[int, ...], processes: int, visible: list[str], expected: str
) -> None:
    if expected.startswith("names"):
        with pytest.raises(DtoError, match=f"train.engine_gpus {expected}.*leave it empty"):
            visible_devices(gpus, processes, visible)
    else:
        assert visible_devices(gpus, processes, visible) == expected


class Calls:
    """Records what is asked of vLLM; `fails` is the call that raises."""

    def __init__(self, fails: str = "") -> None:
        self.made: list[tuple[Any, ...]] = []
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> bool:
            self.made.append((name, *args, *kwargs.values()))
            if name == self._fails:
                raise RuntimeError("CUDA out of\nmemory")
            return True

        return call


def handed_engine(calls: Calls, *, sleeps: bool) -> Any:
    engine: Any = object.__new__(HandedEngine)
    engine._llm, engine._sleeps, engine.adapters, engine._handed = calls, sleeps, False, 0
    engine.model, engine.lora = "nano", None
    return engine


@pytest.mark.parametrize("sleeps", [True, False])
async def test_a_shared_gpu_is_given_back_between_uses(sleeps: bool) -> None:
    """Weights wake up before they are replaced, and keys and values after that."""
    calls = Calls()
    engine = handed_engine(calls, sleeps=sleeps)
    await engine.take(Path("folder"))
    await engine.sleep()
    use = [("collective_rpc", "reload_weights", {"weights_path": "folder"})]
    if sleeps:
        use = [("wake_up", ["weights"]), *use, ("wake_up", ["kv_cache"])]
    after = [("sleep", 2)] if sleeps else []
    assert calls.made == [*use, ("reset_prefix_cache", True), *after]


async def test_weights_that_are_not_taken_are_one_line() -> None:
    engine = handed_engine(Calls("collective_rpc"), sleeps=False)
    with pytest.raises(EngineError, match=r"CUDA out of memory\); checkpoints are kept") as error:
        await engine.take(Path("folder"))
    assert "\n" not in str(error.value)


def test_runs_without_it_stay_whole(run: RunFolder) -> None:
    """Neither the digest of a finished training nor the mark of an unfinished one has changed."""

    def config(**train: Any) -> dict[str, Any]:
        return settings_read(run.with_training(**train).recipe, STAGE)

    def mark(**train: Any) -> str:
        return fingerprint(run.with_training(**train).recipe, Material([], [], [], [], []))

    assert not [key for key in config() if "engine" in key and key.startswith("train.")]
    assert config(engine="vllm", engine_gpus=(1,)) == {**config(), "train.engine": "vllm"}
    assert mark() == mark(engine_gpus=(1,)) != mark(engine="vllm")
    assert mark(engine="vllm") == mark(engine="vllm", engine_gpus=(1,))


def together(arguments: list[str]) -> int:
    """One of two processes: both measure alone, then with the engine of the first."""
    world = PartialState(cpu=True)
    run = Path(arguments[0])
    recipe = load_recipe(run / "recipe.yaml")
    besides.HandedEngine = StandIn  # type: ignore[assignment,misc]
    problems = list(RunReader(run, recipe).problems("dev"))
    model, words = load(recipe)
    alone, spent = measure(model, words, problems, recipe)
    with Beside(recipe, model, run) as engine:
        shared, usage = measure(model, words, problems, recipe, beside=engine)
    by_id: Any = lambda row: row.id  # noqa: E731
    assert sorted(alone, key=by_id) == sorted(shared, key=by_id)
    assert len(alone) == 12 and usage.generated == spent.generated > 0
    assert StandIn.uses == (1 if world.is_main_process else 0)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    for part in (*model.model.layers, model):
        fully_shard(part)  # each process holds a half of the weights
    write_weights(model, run / "sharded", torch.float32, world.is_main_process)
    if world.is_main_process:
        files = map(load_file, (run / "sharded").glob("*.safetensors"))
        written = {name: part for file in files for name, part in file.items()}
        assert written.keys() == before.keys()
        assert all(torch.equal(written[name], part) for name, part in before.items())
    world.wait_for_everyone()
    world.destroy_process_group()
    return 0


@pytest.mark.slow
def test_the_first_process_samples_for_all(run: RunFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        warm.process(
            together, [str(run.path)],
            environment=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def test_vllm_that_is_not_installed_is_one_line(run: RunFolder) -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        training = run.with_training(engine="vllm")
        with pytest.raises(EngineError, match="engine vllm is not installed") as error:
            Beside(training.recipe, load(training.recipe)[0], run.path).__enter__()
        assert "\n" not in str(error.value)
