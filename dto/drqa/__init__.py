"""Quota by competition (DRQA, arXiv 2508.17803): batch prompts, chains, and labels made of them.

`batch`, `chain` and `label` are the stages. `wording` finds the names of questions in a text.
`answers` reads the answers from a conclusion. `split` cuts the thinking into a piece for each
question and removes the format that shows a chain's origin. `label` also decides which chains are
concise, verbose or wrong. `probe` measures whether the format of a chain predicts its origin.
"""
