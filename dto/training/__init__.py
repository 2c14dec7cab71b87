"""Training: what `dto.training.train` starts in a child process.

`process` is the process itself and `fit` one training in it. `simpo`, `dpo`, `sft`, `pruner` and
`grpo` are the losses, each by a trainer of TRL on stored token ids; `trainer` is what they have in
common, `pairs` what they read and `rewards` what the last two weigh. `dev` measures the model on
dev problems, `checkpoints` says which state is kept, `weights` loads and keeps it.
"""
