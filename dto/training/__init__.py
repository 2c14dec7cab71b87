"""Training, in a child process that the stage `train` starts.

`process` is the entry point of that process, and `fit` one training in it. `trainers` holds SimPO,
DPO and SFT by TRL's trainers on token ids, `grpo` what samples, rewards or weighs its responses,
`rewards` the rewards. `pairs` reads rows and puts them in order. `dev` measures the model on dev
problems and on held-out chains; `checkpoints` decides when, and which state is kept. `weights`
loads and saves models.
"""
