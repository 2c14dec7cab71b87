"""A run on disk: journals while a stage is under way, a table and a manifest when it is done."""
