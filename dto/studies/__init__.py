"""Stages outside of a normal run: traces for calibrating exits, and the pilot study of DEER."""
