"""Fixtures of the tests of records."""

from made_up_records import full, made_up  # noqa: F401
