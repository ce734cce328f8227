"""Versions of packages, with the commit of what comes from a repository."""

import importlib
import importlib.metadata
import json
import sys

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


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"HEAD": COMMIT}, COMMIT),
        ({"HEAD": "ref: refs/heads/x", "refs/heads/x": COMMIT}, COMMIT),
        ({"HEAD": "ref: refs/x", "packed-refs": f"# packed\n{COMMIT} refs/x"}, COMMIT),
        ({"HEAD": "ref: refs/x"}, None),
        ({}, None),
    ],
)
def test_the_commit_of_a_clone_is_told(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        file = tmp_path / ".git" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "ldro_jax" / "records" / "x.py"))
    assert provenance.occasion().get("commit") == expected


@pytest.mark.parametrize("head, expected", [(COMMIT, "1.5 (cc342d41)"), ("ref: refs/x", "1.5")])
def test_so_has_a_clone_that_stands_at_one(installed, tmp_path, head, expected):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / ".git" / "HEAD").write_text(f"{head}\n")
    source = {"url": f"file://{tmp_path}/clone", "dir_info": {"editable": True}}
    assert installed(source)["ldro-made-up"] == expected


@pytest.mark.parametrize(
    "given, said",
    [
        (["/usr/bin/python3", "-m", "x", "--a=b c"], "python3 -m x '--a=b c'"),
        (["python", "-c", "secret = 3\n" * 100], "python -c …"),
        (
            ["python", "x.py", "--token=abc", "--api_key", "abc"],
            "python x.py --token=… --api_key …",
        ),
        (["python", "x" * 400], f"python {'x' * 293}…"),
        ([], "''"),
    ],
)
def test_the_command_is_told_without_secrets_and_in_a_line(monkeypatch, given, said):
    monkeypatch.setattr(sys, "orig_argv", given)
    assert provenance.occasion()["command"] == said
