"""The Hub: a run as a dataset, its model as a model, and both on their way back.

`publish` builds a folder (`folder`, `card`, `model`) without what is private (`dto.redact`) or
others' to publish, searches it once more, and uploads it as one commit (`upload`); `pull` makes a
run of what others published.
"""
