"""The embedded reasoning model: small enough for the repository, and a real overthinker.

`nano` answers chains of one-digit arithmetic (:mod:`dto.nano.corpus`) and keeps on checking what it
has; `nano-control` is of the same size and stops when it is done. `make nano` trains them
(`benchmarks/nano`).
"""
