"""Versions of packages, with the commit of what comes from a repository."""

import importlib
import importlib.metadata
import json

import pytest

from ldro_jax.records import provenance

COMMIT = "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package in a folder of its own, installed from somewhere."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def install(direct_url):
        info = tmp_path / "site" / "ldro_made_up-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ldro-made-up\nVersion: 1.5\n")
        if direct_url is not None:
            (info / "direct_url.json").write_text(json.dumps(direct_url))
        importlib.invalidate_caches()
        return provenance.versions("ldro-made-up", "ldro-not-there")

    return install


def test_a_package_of_the_index_has_its_version_alone(installed):
    found = installed(None)
    assert found["ldro-made-up"] == "1.5" and "ldro-not-there" not in found
    assert found["jax"] == importlib.metadata.version("jax")


def test_what_comes_from_a_repository_has_its_commit(installed):
    source = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    assert installed(source)["ldro-made-up"] == "1.5 (cc342d41)"


@pytest.mark.parametrize("head, expected", [(COMMIT, "1.5 (cc342d41)"), ("ref: refs/x", "1.5")])
def test_so_has_a_clone_that_stands_at_one(installed, tmp_path, head, expected):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / ".git" / "HEAD").write_text(f"{head}\n")
    source = {"url": f"file://{tmp_path}/clone", "dir_info": {"editable": True}}
    assert installed(source)["ldro-made-up"] == expected
