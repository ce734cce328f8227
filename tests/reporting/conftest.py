"""Fixtures of the tests of reporting."""

from helpers.made_up_records import full, made_up  # noqa: F401
