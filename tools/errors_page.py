"""The page of all errors, written from the errors themselves.

    python tools/errors_page.py     writes docs/errors.md

A test compares the page with what this makes.
"""

import inspect
from pathlib import Path

from legion_p2p import errors
from legion_p2p.cli.failures import OTHER_NAMES, exit_code_of
from legion_p2p.errors import LegionError, short_name

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"

HEAD = """# Errors

What a command says at its end closes with the short name of the error in brackets, as in

```text
legion-peer: error: no peer knows a run named 'storys' (2 contacts asked); known here: stories [unknown-run]
```

In Python the same errors are classes in `legion_p2p.errors`, all of them below `LegionError`. The [FAQ](faq.md) has the messages
that people ask about most. This page is written from the errors themselves: `python tools/errors_page.py`.

| short name | class | exit code of a command |
|---|---|---|
"""


def kinds() -> list[type[LegionError]]:
    """All errors, as they stand in their file."""
    found = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, LegionError)]
    return [kind for kind in found if kind is not LegionError]


def page() -> str:
    """The text of docs/errors.md."""
    rows, sections = [], []
    for kind in kinds():
        name, code = short_name(kind), exit_code_of(kind.__new__(kind))
        rows.append(f"| [{name}](#{name}) | `{kind.__name__}` | {code} |")
        (above,) = kind.__bases__
        below = "" if above is LegionError else f" It is a `{above.__name__}`."
        sections.append(f"## {name}\n\n`legion_p2p.errors.{kind.__name__}`.{below}\n\n{inspect.getdoc(kind)}\n")
    for name, (code, text) in OTHER_NAMES.items():
        rows.append(f"| [{name}](#{name}) | of the system or the program | {code} |")
        sections.append(f"## {name}\n\n{text}\n")
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
