"""Fixtures of the tests of records."""

from helpers.made_up_records import full, made_up  # noqa: F401
