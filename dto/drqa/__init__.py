"""Quota by competition (DRQA, arXiv 2508.17803): what batch prompts give, and labels made of it.

The stages are `batch`, `chain` and `label` of `dto.stages`; here stands what they are made of.
"""
