"""Commands whose arguments need more room than `dto.cli` has; each adds itself to the app."""
