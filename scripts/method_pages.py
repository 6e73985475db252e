"""One page a method for the documentation site, from the registered methods: what `redistill show SLUG` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redistill.catalogue import describe, marks

ROOT = Path(__file__).parent.parent


def cell(value: Any) -> str:
    """Text that may stand in a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def page(facts: Mapping[str, Any]) -> str:
    """The page of one method."""
    slug = str(facts["slug"])
    lines = [
        f"# {slug}: {facts['title']}",
        "",
        f"{facts['paper']}. Domain: {facts['family']}. Evidence: **{facts['evidence']}**.",
        "",
    ]
    lines += [str(facts["idea"]), "", "```text", str(facts["objective"]), "```", ""]
    lines += ["```sh", f"redistill run {slug}", f"redistill reproduce {slug}", "```", ""]
    if facts["options"]:
        lines += ["## Options", "", "| option | default | range | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{one['name']}` | {cell(one['default'])} | {cell(one['range'])} | {cell(one['meaning'])} |"
            for one in facts["options"]
        ]
        lines.append("")
    if facts["says_does"]:
        lines += ["## Where paper and released code differ", ""]
        lines += [f"- paper: {cell(note[0])}; code: {cell(note[1])}" for note in facts["says_does"]] + [""]
    found = sorted((ROOT / "evidence" / slug).rglob("verdict.json"))
    if found:
        lines += ["## Evidence", ""]
        for path in found:
            verdict = json.loads(path.read_text())
            gap = verdict["difference"]
            interval = f"{gap['estimate']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
            lines.append(
                f"- **{verdict['verdict']}**: {verdict['claim']}. `{gap['of']}` {interval}, {len(verdict['seeds'])} seeds."
            )
        lines += ["", "Arms, controls and curves are on the page of [evidence](../evidence.md).", ""]
    lab = ROOT / "docs" / "lab" / f"{slug}.md"
    if lab.is_file():
        lines += [f"What was learnt beside the verdict: [lab page](../lab/{slug}.md).", ""]
    return "\n".join(lines)


def write_pages(folder: Path) -> None:
    """Write every method's page and their index into a folder."""
    folder.mkdir(exist_ok=True)
    slugs = sorted(marks())
    for slug in slugs:
        text = page(describe(slug))
        target = folder / f"{slug}.md"
        if not target.is_file() or target.read_text() != text:
            target.write_text(text)
    for stale in set(folder.glob("*.md")) - {folder / f"{slug}.md" for slug in (*slugs, "index")}:
        stale.unlink()
    entries = "\n".join(slugs)
    (folder / "index.md").write_text(
        f"# Methods, one by one\n\nOne row each is in [the table of all methods](../methods.md).\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    )


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
