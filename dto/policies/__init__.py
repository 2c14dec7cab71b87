"""Exits of other papers, DEER as published, its static exits: one function a policy.

The mechanism, and DEER itself, are in `dto.exits`, which opens these by name.
"""
