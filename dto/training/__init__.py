"""Preference training: what `dto.stages.train` starts in a child process.

`simpo` is the process itself and the only module that imports `trl.experimental`; `pairs` reads
what it trains on, `dev` measures the model on dev problems, `checkpoints` says which state is kept.
"""
