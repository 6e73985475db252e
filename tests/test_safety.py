"""What the package must never do, read off its source: run text, read pickles, run a model's code, serve."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "redistill"
SANDBOX = "sandbox"
"""The one folder whose code runs, in a jail, what a model wrote."""
CALLS = {"eval", "exec", "compile", "__import__"}
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib",  # data that runs code
    "http.server", "socketserver", "xmlrpc.server", "wsgiref", "flask", "fastapi", "uvicorn", "aiohttp.web",  # servers
}  # fmt: skip
METHODS = {"bind", "listen", "create_server", "start_server"}


def sources(root: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def offences(tree: ast.Module, jailed: bool = False) -> Iterator[str]:
    """What a module does that the package must not, a line each."""
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            module = getattr(node, "module", None)
            full = names if isinstance(node, ast.Import) else [str(module), *(f"{module}.{name}" for name in names)]
            yield from (
                f"{where}: import {name}" for name in full if name in MODULES and not (jailed and name == "marshal")
            )
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in CALLS and not jailed:
            yield f"{where}: {called.id}()"
        if isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if called.attr in METHODS and owner not in ("signature", "self") and not jailed:
                yield f"{where}: .{called.attr}()"
            if (owner, called.attr) in (("torch", "load"), ("torch", "save"), ("yaml", "load")):
                yield f"{where}: {owner}.{called.attr}()"
        for keyword in node.keywords:
            true = not (isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, True, None))
            value = getattr(keyword.value, "value", None)
            bad = {
                "trust_remote_code": value is not False,
                "allow_pickle": value is not False,
                "shell": value is not False,
            }
            if bad.get(str(keyword.arg)) or (true and keyword.arg in bad):
                yield f"{where}: {keyword.arg}="


def test_the_package_runs_no_text_reads_no_pickle_and_serves_nothing() -> None:
    """Pitfalls 104 and 105: peers' graders call eval, their servers and data files unpickle what a stranger sends."""
    found = [
        f"{path.relative_to(PACKAGE)} {offence}"
        for path, tree in sources(PACKAGE)
        for offence in offences(tree, jailed=SANDBOX in path.relative_to(PACKAGE).parts)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)", "exec(x)", "import pickle", "from http import server\nfrom http.server import HTTPServer", "torch.load(p)",
        "load(p, trust_remote_code=True)", "load(p, trust_remote_code=flag)", "np.load(p, allow_pickle=True)", "sock.bind(a)",
        "subprocess.run(x, shell=True)", "__import__('os')", "asyncio.start_server(f)", "from socketserver import TCPServer",
    ],
)  # fmt: skip
def test_each_of_these_is_noticed(text: str) -> None:
    assert list(offences(ast.parse(text)))


def test_what_is_allowed_is_not_noticed() -> None:
    assert list(offences(ast.parse("model.eval()\nload(p, trust_remote_code=False)\nre.compile(x)\nimport json"))) == []
