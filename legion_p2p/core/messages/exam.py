"""Answers to the questions of a multiple-choice test, which members share."""

from typing import Annotated

import msgspec

from legion_p2p.core.answers import MAX_ANSWER_BYTES
from legion_p2p.core.messages.base import Count, Digest, Message, Request, RunId


class Answers(Message, frozen=True, tag="answers"):
    """The questions that a member has answered in a round, packed as in `core.answers`. Round 0: none."""

    round: Count
    step: Count
    """Of the run, as the member counted."""
    packed: Annotated[bytes, msgspec.Meta(max_length=MAX_ANSWER_BYTES)]


class GetAnswers(Request[Answers], frozen=True, tag="get_answers"):
    """What have you answered in this round of this test? Answered with Answers."""

    run: RunId
    test: Digest
    round: Count
