"""Rows of every known shape, written after the published forms: two problems, two responses each.

A shape is a function `(question, gold, answers) → rows`. The first answer is the shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Row = dict[str, Any]


class Answer(NamedTuple):
    thinking: str
    conclusion: str

    @property
    def text(self) -> str:
        return f"<think>\n{self.thinking}\n</think>\n\n{self.conclusion}"


Form = Callable[[str, str, list[Answer]], Iterator[Row]]


def problem(a: int, b: int) -> tuple[str, str, list[Answer]]:
    """A question, its gold answer, a short and a long response; both are right."""
    conclusion = f"**Final Answer**\n\n\\boxed{{{a + b}}}"
    short = f"{a} and {b} make {a + b}."
    long = f"{short}\n\nWait, let me check that again. {a} + {b} is {a + b}, so it holds."
    return f"What is {a} + {b}?", str(a + b), [Answer(short, conclusion), Answer(long, conclusion)]


PROBLEMS = [problem(2, 3), problem(4, 5)]


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def says(content: Any, **others: Any) -> Row:
    return {"role": "assistant", "content": content, **others}


def choices(message: Row, **others: Any) -> Row:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice],
            "usage": {"completion_tokens": 9}, **others}  # fmt: skip


def of_each(row: Callable[[str, str, Answer], Row]) -> Form:
    """A shape with one response in a row."""

    def rows(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
        yield from (row(question, gold, answer) for answer in answers)

    return rows


def openr1(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    texts = [answer.text for answer in answers]
    yield {
        "problem": question, "solution": f"It is ${gold}$.", "answer": gold,
        "problem_type": "Algebra", "question_type": "math-word-problem", "source": "olympiads",
        "uuid": "1", "is_reasoning_complete": [True, True], "generations": texts,
        "correctness_math_verify": [True, False], "correctness_llama": None,
        "finish_reasons": None, "correctness_count": 1,
        "messages": [user(question), says(texts[0])],
    }  # fmt: skip


def openr1_llama(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    (row,) = openr1(question, gold, answers)
    del row["messages"]
    yield row | {"correctness_math_verify": [None, None], "correctness_llama": [True, False]}


def s1k(question: str, gold: str, answer: Answer) -> Row:
    return {"solution": gold, "question": question, "cot_type": "math", "source_type": "aime",
            "metadata": "{}", "cot": None, "thinking_trajectories": [answer.thinking],
            "attempt": answer.conclusion}  # fmt: skip


def s1k_11(question: str, gold: str, answer: Answer) -> Row:
    return {
        "solution": f"So it is \\boxed{{{gold}}}.", "question": question, "cot_type": "math",
        "source_type": "aime", "metadata": "{}", "gemini_thinking_trajectory": "Hm.",
        "gemini_attempt": "It is 7.", "deepseek_thinking_trajectory": answer.thinking,
        "deepseek_attempt": answer.conclusion, "gemini_grade": "No",
        "gemini_grade_reason": "wrong", "deepseek_grade": "Yes", "deepseek_grade_reason": "right",
    }  # fmt: skip


def s1k_gemini(question: str, gold: str, answer: Answer) -> Row:
    row = s1k_11(question, gold, answer)
    for name in ("thinking_trajectory", "attempt"):
        row[f"gemini_{name}"] = row.pop(f"deepseek_{name}")
    return row


def open_thoughts(question: str, gold: str, answer: Answer) -> Row:
    value = (
        f"<|begin_of_thought|>\n\n{answer.thinking}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{answer.conclusion}\n\n<|end_of_solution|>"
    )
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": value}]
    return {"system": "Your role is …", "conversations": turns, "answer": gold}


def open_thoughts_metadata(question: str, gold: str, answer: Answer) -> Row:
    return {"problem": question, "deepseek_reasoning": answer.thinking,
            "deepseek_solution": answer.conclusion, "domain": "math", "source": "numina",
            "ground_truth_solution": f"Adding, we get \\boxed{{{gold}}}.", "test_cases": None,
            "starter_code": None}  # fmt: skip


def limo(question: str, gold: str, answer: Answer) -> Row:
    return {"question": question, "answer": gold,
            "solution": f"{answer.thinking}\n\n{answer.conclusion}"}  # fmt: skip


def request_log(question: str, gold: str, answer: Answer) -> Row:
    message = says(answer.conclusion, reasoning_content=answer.thinking, tool_calls=[])
    return {"request": {"model": "m", "messages": [user(question)], "temperature": 0.6},
            "response": choices(message), "ground_truth": gold}  # fmt: skip


def vllm_log(question: str, gold: str, answer: Answer) -> Row:
    message = says(answer.conclusion, reasoning=answer.thinking)
    return {"id": 1, "gold": gold,
            "request": {"messages": [{"role": "system", "content": "Be brief."}, user(question)]},
            "response": {"status_code": 200, "body": choices(message)}}  # fmt: skip


def anthropic_log(question: str, gold: str, answer: Answer) -> Row:
    parts = anthropic(question, gold, answer)["messages"][1]["content"]
    reply = {"id": "msg_1", "type": "message", "role": "assistant", "content": parts,
             "stop_reason": "end_turn", "usage": {"output_tokens": 9}}  # fmt: skip
    return {"request": {"model": "m", "max_tokens": 99, "messages": [user(question)]},
            "response": reply, "gold": gold}  # fmt: skip


def anthropic_batch(question: str, gold: str, answer: Answer) -> Row:
    row = anthropic_log(question, gold, answer)
    return {"custom_id": "1", "params": row["request"], "gold": gold,
            "result": {"type": "succeeded", "message": row["response"]}}  # fmt: skip


def completion(question: str, gold: str, answer: Answer) -> Row:
    return choices(says(answer.text), messages=[user(question)], answer=gold)


def deepseek(question: str, gold: str, answer: Answer) -> Row:
    return {"question": question, "reasoning_content": answer.thinking,
            "content": answer.conclusion, "reference_answer": gold}  # fmt: skip


def beside(key: str) -> Callable[[str, str, Answer], Row]:
    def row(question: str, gold: str, answer: Answer) -> Row:
        message = says(answer.conclusion, **{key: answer.thinking})
        return {"messages": [user(question), message], "answer": gold}

    return row


def anthropic(question: str, gold: str, answer: Answer) -> Row:
    parts = [{"type": "thinking", "thinking": answer.thinking, "signature": "Eu"},
             {"type": "redacted_thinking", "data": "Eg"},
             {"type": "text", "text": answer.conclusion}]  # fmt: skip
    asked = [{"type": "image_url", "image_url": {"url": "data:,"}},
             {"type": "text", "text": question}]  # fmt: skip
    return {"messages": [user(asked), says(parts)], "answer": gold}


def magistral(question: str, gold: str, answer: Answer) -> Row:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": answer.thinking}]}
    parts = [thought, {"type": "text", "text": answer.conclusion}]
    return {"messages": [user(question), says(parts)], "answer": gold}


def responses_api(question: str, gold: str, answer: Answer) -> Row:
    summary = [{"type": "summary_text", "text": answer.thinking}]
    text = {"type": "output_text", "text": answer.conclusion, "annotations": []}
    items = [{"type": "reasoning", "id": "rs_1", "summary": summary},
             {"type": "message", "role": "assistant", "content": [text]}]  # fmt: skip
    return {"input": question, "output": items, "answer": gold}


def trl(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    chosen, rejected = (answer.text for answer in answers)
    yield {"prompt": question, "chosen": chosen, "rejected": rejected}


def trl_chat(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    chosen, rejected = ([says(answer.text)] for answer in answers)
    yield {"prompt": [user(question)], "chosen": chosen, "rejected": rejected}


def trl_implicit(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    chosen, rejected = ([user(question), says(answer.text)] for answer in answers)
    yield {"chosen": chosen, "rejected": rejected, "score_chosen": 1.0, "score_rejected": 0.0}


def trl_message(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    chosen, rejected = (says(answer.text) for answer in answers)
    yield {"prompt": [user(question)], "chosen": chosen, "rejected": rejected}


def sharegpt(question: str, gold: str, answer: Answer) -> Row:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer.text}]
    return {"id": "1", "conversations": turns, "answer": gold}


def verifiers(question: str, gold: str, answer: Answer) -> Row:
    return {"prompt": [user(question)], "completion": [says(answer.text)], "answer": gold,
            "reward": 1.0, "task": "default", "info": {}, "example_id": 0}  # fmt: skip


def lm_eval(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    for name in ("strict-match", "flexible-extract"):
        for answer in answers:
            yield {
                "doc_id": 0, "doc": {"question": question, "answer": f"Add.\n#### {gold}"},
                "target": f"Add.\n#### {gold}", "resps": [[answer.text]],
                "arguments": {"gen_args_0": {"arg_0": f"Question: {question}\nAnswer:",
                                             "arg_1": {"until": ["Question:"]}}},
                "filtered_resps": [gold], "filter": name, "metrics": ["exact_match"],
                "exact_match": 1.0 if name == "strict-match" else 0.0,
            }  # fmt: skip


def inspect(question: str, gold: str, answer: Answer) -> Row:
    parts = [{"type": "reasoning", "reasoning": answer.thinking, "redacted": False},
             {"type": "text", "text": answer.conclusion}]  # fmt: skip
    message = says(parts, source="generate", model="m")
    return {
        "id": 1, "epoch": 1, "input": question, "target": gold,
        "messages": [{"role": "system", "content": "s"}, user(f"Solve it: {question}"), message],
        "output": {"model": "m", "choices": [{"message": message, "stop_reason": "stop"}]},
        "scores": {"match": {"value": "C", "answer": gold}},
    }  # fmt: skip


def inspect_short(question: str, gold: str, answer: Answer) -> Row:
    row = inspect(question, gold, answer)
    return row | {"messages": [], "input": [user(question)], "target": [gold],
                  "scores": {"match": {"value": "I"}, "judge": {"value": 0}}}  # fmt: skip


def several(question: str, gold: str, answers: list[Answer]) -> Iterator[Row]:
    texts = [answer.text for answer in answers]
    yield {"question": question, "responses": texts, "correct": [True, None],
           "reward_model": {"style": "rule", "ground_truth": [gold]}}  # fmt: skip


def alpaca(question: str, gold: str, answer: Answer) -> Row:
    return {"instruction": question, "input": "", "output": answer.text, "answer": float(gold)}


class Known(NamedTuple):
    """A shape, its name in the log, and what a response of it carries."""

    form: Form
    shape: str
    correct: tuple[bool | None, bool | None] = (None, None)
    left_out: tuple[str, ...] = ()


RIGHT = (True, True)
KNOWN = {
    "openr1": Known(openr1, "OpenR1-Math", (True, False)),
    "openr1 by a judge": Known(openr1_llama, "OpenR1-Math", (True, False)),
    "s1K": Known(of_each(s1k), "s1K"),
    "s1K-1.1": Known(of_each(s1k_11), "s1K-1.1", RIGHT, ("generations",)),
    "s1K-1.1 of Gemini": Known(of_each(s1k_gemini), "s1K-1.1 of Gemini", (False, False)),
    "OpenThoughts": Known(
        of_each(open_thoughts), "OpenThoughts", left_out=("system_prompt", "tags")
    ),
    "OpenThoughts metadata": Known(of_each(open_thoughts_metadata), "OpenThoughts metadata"),
    "LIMO": Known(of_each(limo), "LIMO"),
    "request log": Known(of_each(request_log), "request log"),
    "vLLM log": Known(of_each(vllm_log), "request log", left_out=("system_prompt",)),
    "Anthropic log": Known(
        of_each(anthropic_log), "request log", left_out=("redacted_thinking",)
    ),
    "Anthropic batch": Known(
        of_each(anthropic_batch), "Anthropic batch", left_out=("redacted_thinking",)
    ),
    "completion": Known(of_each(completion), "chat completion"),
    "DeepSeek rows": Known(of_each(deepseek), "columns"),
    "reasoning_content": Known(of_each(beside("reasoning_content")), "chat"),
    "reasoning": Known(of_each(beside("reasoning")), "chat"),
    "Anthropic parts": Known(of_each(anthropic), "chat", left_out=("image", "redacted_thinking")),
    "Magistral parts": Known(of_each(magistral), "chat"),
    "Responses API": Known(of_each(responses_api), "input and output", left_out=("summary",)),
    "TRL": Known(trl, "preferences"),
    "TRL conversational": Known(trl_chat, "preferences"),
    "TRL messages": Known(trl_message, "preferences"),
    "TRL implicit prompt": Known(trl_implicit, "preferences"),
    "ShareGPT": Known(of_each(sharegpt), "ShareGPT"),
    "verifiers": Known(of_each(verifiers), "verifiers", RIGHT),
    "lm-eval": Known(lm_eval, "lm-eval", RIGHT, ("prompt",)),
    "inspect": Known(of_each(inspect), "inspect", RIGHT, ("prompt", "system_prompt")),
    "inspect without messages": Known(of_each(inspect_short), "inspect", (False, False)),
    "several in a column": Known(several, "columns", (True, None)),
    "Alpaca": Known(of_each(alpaca), "instruction and input"),
}  # fmt: skip


def rows_of(form: Form) -> list[Row]:
    return [row for each in PROBLEMS for row in form(*each)]
