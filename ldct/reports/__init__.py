"""Runs side by side: tables, charts, the page, findings."""
