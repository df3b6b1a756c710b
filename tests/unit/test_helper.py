"""A helper needs neither model nor text nor optimizer, and says so where it is given what belongs to them."""

import subprocess
import sys

import pytest

from legion_p2p.config import NewRun, RunChoice, Training
from legion_p2p.errors import UsageError
from legion_p2p.train.helper import OF_TRAINING, check_helper

OTHER_THAN_USUAL = {
    "data": "x",
    "tokenizer": "x",
    "steps": 3,
    "eval_every_s": 2.0,
    "seed": 4,
    "device": "cpu",
    "wait_for_members": 2,
    "average": True,
    "eval_tasks": ("task.yaml",),
}


def test_nothing_of_training_is_imported():
    code = (
        "import sys, legion_p2p.train.helper; "
        "bad = [m for m in sys.modules if m.startswith('legion_p2p.train.') and m.split('.')[2] in "
        "('gpt', 'optimizer', 'trainer', 'corpus', 'data', 'transformers_model')]; print(bad)"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("field", OF_TRAINING)
def test_what_only_training_needs_is_refused_by_name(field):
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')}: a helper trains nothing"):
        check_helper(RunChoice("run"), Training(**{field: OTHER_THAN_USUAL[field]}))


def test_a_helper_does_not_create_runs():
    with pytest.raises(UsageError, match="a peer that trains creates it"):
        check_helper(RunChoice(new_run=NewRun("run")), Training())


def test_how_long_it_helps_and_where_it_writes_are_its_own_to_choose():
    check_helper(RunChoice("run"), Training(minutes=5, finish_together=True, out="o", threads=1))
