"""Stages as published baselines have them: other exits to train on, other pairs."""
