"""Counts what was tried; the figures are printed at the end, see the conftest at the root."""

import pytest
from faults import harness


@pytest.fixture(scope="session")
def runners(tmp_path_factory):
    pytest.importorskip("sklearn")
    found = harness.Runners(tmp_path_factory.mktemp("runners"))
    yield found
    found.close()


@pytest.fixture
def survived(record_property):
    """Takes a name and, for each trial, nothing or what went wrong."""

    def report(name, problems):
        problems = list(problems)
        failures = [problem for problem in problems if problem]
        line = f"{name}: tried {len(problems)}, survived {len(problems) - len(failures)}"
        record_property("faults", line)
        assert problems and not failures, "\n".join([line, *failures[:10]])

    return report
