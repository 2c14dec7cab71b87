"""The exit policies of other papers, the variants of DEER, and policies without trials.

The mechanism, and DEER itself, are in `dto.exits`; `dto.settings.POLICIES` lists all policies.
"""
