"""The embedded reasoning model: small enough for the repository, and a real overthinker.

`nano` answers chains of one-digit arithmetic and keeps on checking what it has; `nano-control` is
of the same size and stops when it is done. Both were trained on the chains of :mod:`dto.nano.corpus`
by `make nano` (`benchmarks/nano`).
"""
