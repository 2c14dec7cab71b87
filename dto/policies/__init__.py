"""Exits of other papers, and DEER as its script was published: one module and function a policy.

The mechanism, and DEER itself, are in `dto.exits`, which opens these by name.
"""
