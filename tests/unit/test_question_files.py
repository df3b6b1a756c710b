"""Tasks of lm-evaluation-harness in files: which questions they come to, and what is refused, with the file and the row."""

import json
from pathlib import Path

import pytest

from legion_p2p.core.answers import MAX_QUESTIONS
from legion_p2p.errors import LegionError, StoreError, UsageError
from legion_p2p.train.question_files import MAX_CHOICES, Question, digest_of, read_tasks

ROWS = [
    {"question": "What barks?", "choices": ["a dog", "a cat"], "label": 0},
    {"question": "What purrs? ", "choices": ["a dog", "a cat"], "label": 1},
]
TASK = """
task: animals
dataset_path: json
dataset_kwargs: {data_files: rows.jsonl}
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def written(folder: Path, task: str = TASK, rows: object = None) -> str:
    lines = ROWS if rows is None else rows
    text = lines if isinstance(lines, str) else "\n".join(map(json.dumps, lines))  # type: ignore[arg-type]
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    (folder / "task.yaml").write_text(task, encoding="utf-8")
    return str(folder / "task.yaml")


def test_a_row_and_the_templates_of_a_task_make_a_question(tmp_path: Path) -> None:
    (task,) = read_tasks([written(tmp_path)])

    assert task.name == "animals"
    assert task.questions[0] == Question("Question: What barks?\nAnswer:", ("a dog", "a cat"), (0,), " ")
    assert task.questions[1].right == (1,)


@pytest.mark.parametrize(
    ("choice", "target", "row", "choices", "right"),
    [
        ('"{{[a, b]}}"', '"{{b}}"', {"a": "x", "b": "y"}, ("x", "y"), (1,)),  # the text of a choice
        ("['no', 'yes']", "answer", {"answer": 1}, ("no", "yes"), (1,)),  # the choices themselves
        ('{A: "no", B: "yes"}', '"{{answer}}"', {"answer": "yes"}, ("no", "yes"), (1,)),
        ("choices.text", '"{{choices.label.index(key)}}"', None, ("x", "y", "z"), (2,)),  # as in ARC
        ("endings", '"[0, 2]"', {"endings": ["x", "y", "z"]}, ("x", "y", "z"), (0, 2)),  # several are right
        ("endings", "0", {"endings": ["x", "y"]}, ("x", "y"), (0,)),
        ("endings", "label", {"endings": ["5", "0"], "label": "0"}, ("5", "0"), (1,)),  # a field of text is a choice
    ],
)
def test_choices_and_targets_are_read_as_lm_evaluation_harness_reads_them(
    choice: str, target: str, row: dict | None, choices: tuple, right: tuple, tmp_path: Path
) -> None:
    row = row or {"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "key": "C"}
    choice = '"{{choices.text}}"' if choice == "choices.text" else choice
    text = f"""
task: t
dataset_kwargs: {{data_files: {{test: rows.jsonl, train: other.jsonl}}}}
test_split: test
doc_to_text: ""
doc_to_choice: {choice}
doc_to_target: {target}
target_delimiter: ""
"""

    (task,) = read_tasks([written(tmp_path, text, [row])])

    assert task.questions == (Question("", choices, right, ""),)


def test_a_list_of_rows_and_lines_are_the_same_and_the_description_comes_first(tmp_path: Path) -> None:
    of_lines = read_tasks([written(tmp_path)])
    of_list = read_tasks([written(tmp_path, rows=json.dumps(ROWS, indent=1))])
    described = read_tasks([written(tmp_path, TASK + 'description: "Be right. "\n')])

    assert of_lines == of_list
    assert described[0].questions[0].context.startswith("Be right. Question: ")
    assert digest_of(of_lines, 100) == digest_of(of_list, 100) != digest_of(of_lines, 200)
    assert digest_of(of_lines, 100) != digest_of(described, 100)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("process_docs: !function utils.process", "code is not run"),
        ("doc_to_target: !function utils.target", "code is not run"),
        ("process_docs: x", "unknown field `process_docs`"),
        ("num_fewshot: 5", "num_fewshot 5"),
        ("output_type: generate_until", "must be multiple_choice"),
        ("dataset_path: ai2_arc", "must be json"),
        ("doc_to_choice: [one]", "row 1: ValueError: 1 choices"),
        ("doc_to_choice: ['', x]", "none of them empty"),
        ("doc_to_target: 7", "the right choice is"),
        ("doc_to_target: '{{nobody}}'", "'nobody' is undefined"),
        ("doc_to_text: '{{question.__class__.__mro__}}'", "SecurityError"),
        ("doc_to_text: '{% for'", "row 1: TemplateSyntaxError"),
        ("doc_to_choice: '{{__import__}}'", "row 1"),
        ("dataset_kwargs: {data_files: none.jsonl}", "none.jsonl"),
        ("dataset_kwargs: {}", "must name one file"),
        ("task: [", "is no task that can be read"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_place(change: str, told: str, tmp_path: Path) -> None:
    name = change.partition(":")[0]
    kept = [line for line in TASK.splitlines() if not line.startswith(name + ":")]

    with pytest.raises(StoreError) as refused:
        read_tasks([written(tmp_path, "\n".join([*kept, change]))])

    assert told in str(refused.value) and ("task.yaml" in str(refused.value) or "none.jsonl" in str(refused.value))


@pytest.mark.parametrize("rows", ['{"question": ', "[1]", "", '"x"', '{"question": "x"}\n{]'])
def test_rows_that_are_none_are_named(rows: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="row"):
        read_tasks([written(tmp_path, rows=rows)])


def test_more_questions_or_choices_than_members_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"more than {MAX_QUESTIONS} rows"):
        read_tasks([written(tmp_path, rows=[ROWS[0]] * (MAX_QUESTIONS + 1))])
    with pytest.raises(StoreError, match=f"must be 2 to {MAX_CHOICES}"):
        read_tasks([written(tmp_path, rows=[{**ROWS[0], "choices": ["x"] * (MAX_CHOICES + 1)}])])
    file = written(tmp_path)
    with pytest.raises(UsageError, match="two tasks are called 'animals'"):
        read_tasks([file, file])


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LegionError, match=r"nowhere\.yaml"):
        read_tasks([str(tmp_path / "nowhere.yaml")])
