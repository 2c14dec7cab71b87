"""Which early exit may be trusted: traces with every trial, replayed at any setting, and certified.

trace (generates, once) → replay (any policy and threshold, without generating) → risk (which of
them lose no more accuracy than was asked for) → calibrate (the policy file, its proof, its picture)
"""
