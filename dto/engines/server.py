"""How to start a vLLM server for `model.engine: openai`."""

from __future__ import annotations

from shlex import quote

SEEDS_ON_CPU = "--no-enable-chunked-prefill"
STOPS = "VLLM_MAX_STOP_STRINGS=64"
SESSION_HEADERS = ("X-Session-ID", "X-SMG-Routing-Key")
"""Name a session to the router of a fleet, so that its requests meet one cache. The first is read
by vLLM's router (`--policy consistent_hash`) and by Ray Serve's ConsistentHashRouter, the second by
SGLang's gateway; others ignore them."""
WAYS_OUT = (" — start the server", " — set model.name to one of these")
"""Beginnings of the ways out for a server that cannot be reached, or serves another model."""


def server_flags() -> tuple[tuple[str, str], ...]:
    """What a vLLM server should be started with, and why, for `dto doctor` and errors."""
    return (
        (STOPS, "in its environment; otherwise it takes 4 stop strings, the rest is cut here, and "
                "trial answers waste a few tokens each"),
        ("--enable-prompt-tokens-details", "it reports cached tokens; otherwise costs count each "
                                           "prompt as read anew"),
        ("--max-model-len N", "at least prompt + max_tokens, here and in model.context"),
        (SEEDS_ON_CPU, "on a CPU only: otherwise a seeded request that is read in parts ends it"),
        ("--served-model-name NAME", "if its folder has another path than here: NAME is then "
                                     "model.name, or RUN/train/model for evaluate.server"),
    )  # fmt: skip


def server_command(model: str) -> str:
    """The command line that serves a model with vLLM on a GPU, in backquotes."""
    return f"`{STOPS} vllm serve {quote(model)} --enable-prompt-tokens-details`"
