"""The embedded reasoning model: small enough for the repository, and a real overthinker.

`nano` answers chains of one-digit arithmetic and keeps on checking what it has; `nano-control` is
of the same size and stops when it is done. Both are trained by :mod:`dto.nano.train` on the corpus
of :mod:`dto.nano.corpus`.
"""
