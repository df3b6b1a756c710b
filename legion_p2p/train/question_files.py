"""Multiple-choice questions as the tasks of lm-evaluation-harness describe them: a YAML file, and rows of JSON beside it.

    task: animals
    output_type: multiple_choice
    dataset_path: json
    dataset_kwargs: {data_files: animals.jsonl}
    doc_to_text: "Question: {{question}}\\nAnswer:"
    doc_to_choice: choices                     # a field, a template of a list, or the choices themselves
    doc_to_target: label                       # a number, a choice, a list of numbers, or a template of one

A template is one of Jinja, in its sandbox. What would run code (`!function`, `process_docs`) is refused, and so is whatever would
change the questions and is not understood here (examples before the question, other outputs).
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from legion_p2p.core.answers import MAX_QUESTIONS
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.reading import read_limited

MAX_TASK_BYTES = 1 << 20  # of a YAML file
MAX_ROWS_BYTES = 256 << 20  # of the rows of one task
MAX_CHOICES = 64
MAX_TEXT_CHARS = 1 << 20  # of a question, and of a choice
MAX_TASKS = 64
SPLITS = ("test_split", "validation_split", "training_split")
"""Where the questions are, by the first of these that a task names."""
NO_LIBRARIES = '--eval-tasks reads YAML and Jinja, which are not installed here: pip install "legion_p2p[eval]"'


class Question(msgspec.Struct, frozen=True):
    """One question. `context` and a choice after `delimiter` are what the model reads."""

    context: str
    choices: tuple[str, ...]
    right: tuple[int, ...]
    """Indices of the right choices."""
    delimiter: str = " "


class QuestionTask(msgspec.Struct, frozen=True):
    """A task, with all of its questions."""

    name: str
    questions: tuple[Question, ...]


class _TaskFile(msgspec.Struct, forbid_unknown_fields=True):
    """What a task file may say."""

    task: str
    doc_to_text: str
    doc_to_target: str | int
    doc_to_choice: str | list[str] | dict[str, str]
    dataset_path: str = "json"
    dataset_kwargs: dict[str, Any] = {}
    output_type: str = "multiple_choice"
    test_split: str | None = None
    validation_split: str | None = None
    training_split: str | None = None
    description: str = ""
    target_delimiter: str = " "
    num_fewshot: int | None = None
    repeats: int = 1
    # these change no question
    dataset_name: str | None = None
    fewshot_split: str | None = None
    fewshot_delimiter: str | None = None
    group: Any = None
    tag: Any = None
    metadata: Any = None
    metric_list: Any = None
    should_decontaminate: Any = None
    doc_to_decontamination_query: Any = None


def read_tasks(files: Sequence[str]) -> tuple[QuestionTask, ...]:
    """The tasks of these files. Raises: UsageError; StoreError, naming the file, the row, and what is wrong."""
    if len(files) > MAX_TASKS:
        raise UsageError(f"{len(files)} tasks, at most {MAX_TASKS}")
    tasks = tuple(_read_task(user_path(file)) for file in files)
    n = sum(len(task.questions) for task in tasks)
    if n > MAX_QUESTIONS:
        raise UsageError(f"{n} questions in {len(tasks)} tasks, at most {MAX_QUESTIONS}: leave out some rows")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UsageError(f"two tasks are called {next(name for name in names if names.count(name) > 1)!r}")
    return tasks


def digest_of(tasks: Sequence[QuestionTask], every: int) -> bytes:
    """What members compare to find out whether they take the same test."""
    return hashlib.sha256(msgspec.msgpack.encode((every, tasks))).digest()


def _read_task(path: Path) -> QuestionTask:
    try:
        import yaml
    except ImportError as bad:
        raise UsageError(NO_LIBRARIES) from bad
    try:
        said = msgspec.convert(yaml.safe_load(read_limited(path, MAX_TASK_BYTES)), _TaskFile)
    except yaml.YAMLError as bad:
        code = " (code is not run)" if "!function" in str(bad) else ""
        raise StoreError(f"{shown(path)} is no task that can be read{code}: {bad}") from bad
    except (msgspec.ValidationError, RecursionError) as bad:
        raise StoreError(f"{shown(path)} is no multiple-choice task as it is understood here: {bad}") from bad
    _check(said, path)
    rows_path = _rows_path(said, path)
    render = _Templates(said, path)
    questions = tuple(render.question(row, n) for n, row in enumerate(_rows(rows_path), 1))
    if not questions:
        raise StoreError(f"{shown(rows_path)} has no rows")
    return QuestionTask(said.task, questions)


def _check(said: _TaskFile, path: Path) -> None:
    if said.output_type != "multiple_choice":
        raise StoreError(f"{shown(path)}: output_type {said.output_type!r}, must be multiple_choice")
    if said.num_fewshot or said.repeats != 1:
        raise StoreError(f"{shown(path)}: num_fewshot {said.num_fewshot} and repeats {said.repeats}: only 0 and 1 are understood")
    if said.dataset_path != "json":
        raise StoreError(
            f"{shown(path)}: dataset_path {said.dataset_path!r}: must be json, with data_files that are on this disk"
        )


def _rows_path(said: _TaskFile, path: Path) -> Path:
    """The file of the questions; a relative name is one beside the task's file."""
    files = said.dataset_kwargs.get("data_files")
    if isinstance(files, Mapping):
        split = next((named for one in SPLITS if (named := getattr(said, one))), None)
        files = files.get(split) if split else next(iter(files.values()), None)
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if not isinstance(files, str):
        raise StoreError(f"{shown(path)}: dataset_kwargs.data_files must name one file with the questions")
    return path.parent / files


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Those of a file of JSON lines, or of one list. Raises: StoreError."""
    raw = read_limited(path, MAX_ROWS_BYTES).decode(errors="replace")
    lines = [raw] if raw.lstrip().startswith("[") else raw.splitlines()
    n = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as bad:
            raise StoreError(f"{shown(path)}, after {n} rows: no JSON: {bad}") from bad
        for row in found if isinstance(found, list) else [found]:
            n += 1
            if not isinstance(row, dict):
                raise StoreError(f"{shown(path)}, row {n}: it is a {type(row).__name__}, must be a table of fields")
            if n > MAX_QUESTIONS:
                raise UsageError(f"{shown(path)} has more than {MAX_QUESTIONS} rows: leave out some")
            yield row


class _Templates:
    """Makes questions of rows, as one task says."""

    def __init__(self, said: _TaskFile, path: Path) -> None:
        try:
            from jinja2 import StrictUndefined
            from jinja2.sandbox import SandboxedEnvironment
        except ImportError as bad:
            raise UsageError(NO_LIBRARIES) from bad
        self._said = said
        self._path = path
        self._environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self._templates: dict[str, Any] = {}

    def question(self, row: dict[str, Any], n: int) -> Question:
        """Raises: StoreError, naming the row."""
        try:
            return self._question(row)
        except StoreError:
            raise
        except Exception as bad:  # a template may fail in any way
            raise StoreError(f"{shown(self._path)}, row {n}: {type(bad).__name__}: {bad}") from bad

    def _question(self, row: dict[str, Any]) -> Question:
        said = self._said
        context = said.description + str(self._field_or_text(said.doc_to_text, row))
        choices = tuple(str(one) for one in self._choices(row))
        right = self._right(row, choices)
        if not 2 <= len(choices) <= MAX_CHOICES or not all(choices):
            raise ValueError(f"{len(choices)} choices, must be 2 to {MAX_CHOICES}, none of them empty")
        if not right or not all(0 <= one < len(choices) for one in right):
            raise ValueError(f"the right choice is {right}, there are {len(choices)}")
        if max(map(len, (context, *choices))) > MAX_TEXT_CHARS:
            raise ValueError(f"a text of more than {MAX_TEXT_CHARS} characters")
        return Question(context, choices, right, said.target_delimiter)

    def _choices(self, row: dict[str, Any]) -> list[Any]:
        given = self._said.doc_to_choice
        if isinstance(given, dict):
            return list(given.values())
        if isinstance(given, list):
            return given
        found = row[given] if given in row else ast.literal_eval(self._text(given, row))
        if not isinstance(found, list | tuple):
            raise ValueError(f"doc_to_choice comes to a {type(found).__name__}, must be a list")
        return list(found)

    def _right(self, row: dict[str, Any], choices: tuple[str, ...]) -> tuple[int, ...]:
        """As lm-evaluation-harness reads it: a number, or text that is one of the choices; or a list of numbers."""
        found = self._field_or_text(self._said.doc_to_target, row)
        if isinstance(found, str) and found.isdigit() and self._said.doc_to_target not in row:
            found = int(found)
        if isinstance(found, str) and found.startswith("[") and found.endswith("]"):
            found = ast.literal_eval(found)
        if isinstance(found, str):
            return (choices.index(found),)
        return tuple(int(one) for one in found) if isinstance(found, list) else (int(found),)

    def _field_or_text(self, given: str | int, row: dict[str, Any]) -> Any:
        if isinstance(given, int):
            return given
        return row[given] if given in row else self._text(given, row)

    def _text(self, template: str, row: dict[str, Any]) -> str:
        if template not in self._templates:
            self._templates[template] = self._environment.from_string(template)
        rendered: str = self._templates[template].render(**row)
        return rendered
