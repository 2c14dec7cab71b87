"""Calibrate early exits: record every trial once, replay exits on the records, certify one.

trace (generates tokens, once) → replay (any policy and threshold, without generating) → risk
(certifies which exits lose little accuracy) → calibrate (writes policy file, proof and picture)
"""
