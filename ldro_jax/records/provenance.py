"""Where numbers were made: the packages and the devices."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Any

import jax

# Of a command as it is shown.
_LONGEST = 300
_SECRET = r"--?[\w.-]*(?:token|key|secret|password)"


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that numbers depend on, and of ``more``, by name.

    The commit of what comes from a repository is added, if it is known; packages that aren't
    installed are left out.
    """
    installed = {}
    for package in ("ldro-jax", "jax", "jaxlib", "flax", "optax", "numpy", *more):
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        commit = _commit(distribution)
        installed[package] = distribution.version + (f" ({commit[:8]})" if commit else "")
    return installed


def _commit(distribution: importlib.metadata.Distribution) -> str:
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if "vcs_info" in source:
        return source["vcs_info"]["commit_id"]
    # A clone that pip made for an editable installation is at a commit, not on a branch.
    folders = [distribution.locate_file(""), urllib.parse.urlparse(source.get("url", "")).path]
    for head in (pathlib.Path(str(folder)) / ".git" / "HEAD" for folder in folders if folder):
        if head.is_file() and re.fullmatch(r"[0-9a-f]{40}\s*", text := head.read_text()):
            return text
    return ""


def _head(git: pathlib.Path) -> str:
    """The commit that a clone is at; nothing if that isn't there."""
    head = git / "HEAD"
    text = head.read_text().strip() if head.is_file() else ""
    if text.startswith("ref: "):
        branch, packed = text.removeprefix("ref: "), git / "packed-refs"
        lines = packed.read_text().splitlines() if packed.is_file() else []
        text = next((line.split()[0] for line in lines if line.endswith(f" {branch}")), "")
        if (git / branch).is_file():
            text = (git / branch).read_text().strip()
    return text if re.fullmatch("[0-9a-f]{40}", text) else ""


def device() -> dict[str, Any]:
    """Platform, kind and count of the devices, and the number of processor cores."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "processor": _processor(),
    }


def _processor() -> str:
    """The processor's name; what kind it is where the system doesn't say."""
    try:
        said = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        said = ""
    name = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def machine(device: Mapping[str, Any]) -> str:
    """What :func:`device` says, such as "2 CPU cores (AMD EPYC 9B14)" or "8 × TPU v4".

    Several machines have their words as its ``described``.
    """
    if "described" in device or not device:
        return device.get("described", "not recorded")
    processor = f" ({device['processor']})" if device.get("processor") else ""
    if device.get("platform") != "cpu":
        return " × ".join(str(device[k]) for k in ("count", "kind") if device.get(k)) + processor
    several = f" as {device['count']} devices" if (device.get("count") or 1) > 1 else ""
    cores = f"{device['cpu_cores']} CPU cores" if device.get("cpu_cores") else "CPU"
    return cores + processor + several


def occasion() -> dict[str, str]:
    """When, with which command, and at which commit if this library is in a clone."""
    now = datetime.datetime.now(datetime.UTC)
    program, *arguments = sys.orig_argv or [""]
    if "-c" in arguments:
        arguments = [*arguments[: arguments.index("-c") + 1], "…"]
    said = shlex.join([os.path.basename(program), *arguments]).replace("'…'", "…")
    said = re.sub(rf"(?i)({_SECRET}\S*?[= ])\S+", r"\1…", said)
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
    found = {"date": f"{now:%Y-%m-%d %H:%M} UTC", "command": said}
    if commit := _head(pathlib.Path(__file__).parents[2] / ".git"):
        found["commit"] = commit
    return found
