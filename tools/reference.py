"""The generated pages of the documentation: the public names of the package, the commands' --help, and the events.

    python tools/reference.py [FOLDER]     writes them into FOLDER (docs/reference)

`make docs` does this before it builds the site.
"""

import contextlib
import importlib
import inspect
import io
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

from cyclopts import App
from reference_tables import configuration_page, wire_page

from legion_p2p.cli.running import run_app

ROOT = Path(__file__).parents[1]
COLUMNS = "100"
INDENT = re.compile(r" *")

API = """# Python

Everything that `import legion_p2p as legion` offers, and what it promises to keep: what is not listed here may change tomorrow.

{table}

```{{toctree}}
:hidden:

{pages}
```
"""

MODULE = """# legion_p2p.{name}

```{{eval-rst}}
.. automodule:: legion_p2p.{name}
   :members:
   :show-inheritance:
```
"""

OBJECT = """# {name}

```{{eval-rst}}
.. currentmodule:: legion_p2p

.. {directive}:: {target}
{options}
```
"""

COMMAND = """# {command}

What `{command} --help` prints. [The guide to the command](../commands/{command}.md) explains it with examples.

{blocks}
"""

EVENTS = """# Events

{intro}

```python
peer = legion.Peer(on_event=lambda event: print(event.name, event.fields))
```

| event | says | fields |
|---|---|---|
{rows}

Errors are marked with (error): a person may want to know of them, and the status shows the last ones.

## Fields

| field | means |
|---|---|
{fields}
"""

INDEX = """# legion_p2p {version}

{start}

The reference is generated from the code, so that it is always that of this version:
[configuration](configuration.md), [Python](api.md), [events](events.md), [messages of the wire](wire.md), and what each command
prints for --help.

{toctrees}
"""

CONTENTS = {
    "Start": ["/README", "../index", "../join", "../swarm", "../tutorial", "../bootstrap-node", "../real-models", "../simulate"],
    "How to": [
        "../manners",
        "../trouble",
        "../dashboard",
        "../metrics",
        "/deploy/README",
        "../frameworks",
        "../notebook",
        "../checkpoints",
        "../private-runs",
        "../library",
        "../commands/legion-peer",
        "../commands/legion-bootstrap",
        "../commands/legion-ctl",
        "../commands/legion-demo",
        "../commands/legion-sim",
    ],
    "Reference": [
        "legion-peer",
        "legion-bootstrap",
        "legion-ctl",
        "legion-demo",
        "legion-sim",
        "configuration",
        "api",
        "events",
        "wire",
        "../errors",
        "../faq",
        "../platforms",
    ],
    "Explanation": ["../explanation", "../network", "../coming-from", "../ARCHITECTURE", "/tests/README", "../LOG"],
    "Security model": ["../trust", "/SECURITY"],
    "Project": ["/CONTRIBUTING", "/CODE_OF_CONDUCT", "/CHANGELOG"],
}


def pages() -> dict[str, str]:
    """The name of each page's file, and its text."""
    found = {
        "index.md": index_page(),
        "events.md": events_page(),
        "configuration.md": configuration_page(),
        "wire.md": wire_page(),
    }
    for command, entry in commands().items():
        found[f"{command}.md"] = command_page(command, entry)
    return found | api_pages()


def index_page() -> str:
    """The first page of the site. Pages in docs/ that nobody has put in order come first among "How to"."""
    from legion_p2p import __version__

    contents = {caption: list(names) for caption, names in CONTENTS.items()}
    placed = {name for names in contents.values() for name in names}
    more = [f"../{path.stem}" for path in sorted((ROOT / "docs").glob("*.md"))]
    contents["Records"] = [f"../records/{path.stem}" for path in sorted((ROOT / "docs" / "records").glob("*.md"))]
    contents["How to"][:0] = [name for name in more if name not in placed]
    toctrees = [
        "\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", "", *names, "```"]) for caption, names in contents.items()
    ]
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("\n")[2].strip()
    start = re.sub(r"\]\((?!\w+:)", "](../", start)
    return INDEX.format(version=__version__, start=start, toctrees="\n\n".join(toctrees))


def write(folder: Path) -> None:
    """Write the pages into `folder`, and remove those of an earlier version. Pages that are the same stay untouched."""
    made = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in made:
            path.unlink()
    for name, text in made.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def api_pages() -> dict[str, str]:
    """A page for each public name, and one that lists them."""
    import legion_p2p

    found: dict[str, str] = {}
    rows = []
    for name in sorted(legion_p2p.__all__, key=lambda name: (name.lower(), name)):
        if name.startswith("__"):
            continue
        value = getattr(legion_p2p, name)
        page = f"api-{page_name(name)}"
        found[f"{page}.md"] = api_page(name, value)
        rows.append((name, page, summary(value)))
    table = "\n".join(["| name | |", "|---|---|", *(f"| [`{name}`]({page}.md) | {text} |" for name, page, text in rows)])
    found["api.md"] = API.format(table=table, pages="\n".join(page for _, page, _ in rows))
    return found


def page_name(name: str) -> str:
    """The name of a page, as file systems that do not tell upper from lower case can keep it: `Status` beside `status`."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "-", name).lower() + ("-class" if name[0].isupper() else "")


def api_page(name: str, value: object) -> str:
    if inspect.ismodule(value):
        return MODULE.format(name=name)
    if inspect.isclass(value):
        return OBJECT.format(name=name, directive="autoclass", target=name, options="   :members:\n   :show-inheritance:\n")
    if callable(value):
        return OBJECT.format(name=name, directive="autofunction", target=name, options="")
    return OBJECT.format(name=name, directive="autodata", target=name, options="")


def summary(value: object) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", text)[0].replace("|", "\\|")


def commands() -> dict[str, str]:
    """The commands that an installation brings, and the function of each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    scripts: dict[str, str] = project["scripts"]
    return scripts


def command_page(command: str, entry: str) -> str:
    told = help_below(importlib.import_module(entry.partition(":")[0]).app, [command])
    blocks = "\n\n".join(f"## {' '.join(words)}\n\n```text\n{text.rstrip()}\n```" for words, text in told)
    return COMMAND.format(command=command, blocks=blocks)


def help_below(app: App, words: list[str]) -> list[tuple[list[str], str]]:
    """What a command and all of its subcommands print for --help."""
    text = help_text(app, words)
    section = text.partition("─ Commands ")[2].partition("╰")[0]
    below = re.findall(r"^│ ([a-z][a-z-]*) ", section, re.MULTILINE)
    return [(words, text), *(told for word in below for told in help_below(app, [*words, word]))]


def help_text(app: App, words: list[str]) -> str:
    out = io.StringIO()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), COLUMNS
    try:
        with contextlib.redirect_stdout(out):
            run_app(app, [*words[1:], "--help"])  # not the command's main(), which would choose the exit code of `make docs`
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return out.getvalue()


def events_page() -> str:
    from legion_p2p.observe import catalogue

    intro = "\n".join((catalogue.__doc__ or "").strip().split("\n")[2:])
    rows = "\n".join(
        f"| `{kind.name}` | {kind.meaning}{' (error)' if kind.is_error else ''} | {', '.join(f'`{f}`' for f in kind.fields)} |"
        for kind in catalogue.EVENTS
    )
    fields = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in sorted(catalogue.FIELDS.items()))
    return EVENTS.format(intro=intro, rows=rows, fields=fields)


def unlink_folders(app: object, page: str, source: list[str]) -> None:
    """Sphinx's hook for the text of a page: a link to a folder of the repository becomes its text, because the site has none."""

    def unlinked(link: re.Match[str]) -> str:
        return link[1] if (ROOT / Path(page).parent / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)\)", unlinked, source[0])


def plain_text(app: object, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Sphinx's hook for docstrings: ours are plain text with `code` in single backticks, which this makes harmless as reST."""
    lines[:] = as_rest(lines)


def struct_signature(
    app: object, kind: str, name: str, value: object, options: object, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Sphinx's hook for signatures: that of a struct shows names and defaults only. Its fields follow, with their types."""
    if kind != "class" or not hasattr(value, "__struct_fields__"):
        return None
    import msgspec

    words = []
    for field in msgspec.structs.fields(value):  # type: ignore[arg-type]
        known = field.default is not msgspec.NODEFAULT
        words.append(f"{field.name}={field.default!r}" if known else field.name if field.required else f"{field.name}=...")
    return f"({', '.join(words)})", ""


def as_rest(lines: list[str]) -> list[str]:
    """Escape what reST would take for markup, show indented passages as code, and the entries of `Args:` as a list."""
    found: list[str] = []
    in_code = in_list = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if not text:
            found.append("")
            in_list = in_list and in_code
        elif in_code and indent:
            found.append(line)
        elif in_list and indent:
            # an entry begins at the first indentation; what is deeper goes on with it
            found += ["", f"* {escaped(text)}"] if indent <= 4 else [f"  {escaped(text)}"]
        elif indent and found and not found[-1]:
            found += ["::", "", line]
            in_code = True
        else:
            found += ["", escaped(text)] if in_code else [escaped(text)]
            in_code = False
            in_list = text in ("Args:", "Raises:", "Fields:")
    return [*found, ""]


def escaped(line: str) -> str:
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(
        f"``{piece[1:-1]}``" if piece.startswith("`") and len(piece) > 2 else re.sub(r"([*|\\`]|_(?=\W|$))", r"\\\1", piece)
        for piece in pieces
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "reference")
