"""Publish a run as a Hub dataset and its model as a Hub model, and pull both.

`publish` builds a folder (`folder`, `card`, `model`) without private data (`dto.redact`) and the
questions of test sets, searches it for private data again, and uploads it as one commit (`upload`).
`pull` restores a run from a published dataset.
"""
