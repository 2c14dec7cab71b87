"""Stages beside a run's own: traces to choose an exit by, and the pilot study of DEER."""
