"""The documentation site: `make docs` builds it into build/site with Sphinx; a warning is an error.

Pages are the Markdown files of this folder. One page a method is written here from the registered methods at every build, so
that none can be stale; they are not in the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "scripts"))

from method_pages import write_pages  # noqa: E402

write_pages(HERE / "method")

project = "Redistill"
author = "The authors of Redistill"
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["images/*"]
html_theme = "furo"
html_title = "Redistill"
html_copy_source = False
html_show_sphinx = False
nitpicky = True
suppress_warnings = ["myst.header"]
