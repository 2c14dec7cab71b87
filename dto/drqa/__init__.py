"""Quota by competition (DRQA, arXiv 2508.17803): batch prompts, chains, and labels made of them.

`batch`, `chain` and `label` are the stages. `answers` reads the answers out of a conclusion,
`split` cuts the thinking into a piece for each question and takes off what tells where a chain is
from. `label` also says which chains are concise, verbose or wrong. `probe` measures whether the
format of a chain gives away its origin.
"""
