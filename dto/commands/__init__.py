"""Commands that have a module of their own; `dto.cli` adds them to the app."""
