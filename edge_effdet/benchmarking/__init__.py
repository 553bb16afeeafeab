"""Measure engines under load and write the report: what ``benchmark`` does."""
