"""The judges' prompts are the report's, verbatim, and values are inserted unchanged."""

import pytest

from polyphi_eval.judge import PROMPTS

HASHES = {
    # Of FastChat's judge_prompts.jsonl: system_prompt, NUL, prompt_template.
    "mt_bench": "7d276fe1d4b3f18f09cee44c27895d39be8ee425fdb364476fa66171dc5c5180",
    "mt_bench_reference": "226191a3df0fe7a9bc4c09ff94caefec3a8dc2ee418df85210c1080932bb0122",
    "mt_bench_second": "a91a5b4266b4e3774f6408c1b0b05de1202843b72b58925710a9efa56b3fa636",
    "mt_bench_second_reference": "572e5843611206971e4b74650e66420ea57fef99e1f59d180c5e64e8442eb9b3",
    # Our own; a change requires a new version.
    "air_bench": "75ff7b38bdf255aad974d8f60ca5112a8f7c1bfb891a3cfd750a185f1cd1b088",
    "summary_overall": "52634c65d95d5a94cb0e31cdf3f099804657d80e62ce92df4bade99069b83908",
    "summary_adherence": "0fa55779026b126594e8f1ce55678087481e6a2c9d8f912f954eee207a9e02e8",
    "summary_hallucination": "098b40b59565a56ddcc25872cbb30034638f3f54bc6e5cd09f9bb70ea2f9835a",
}


@pytest.mark.parametrize("name", HASHES)
def test_prompts_that_decide_stay_what_they_are(name: str) -> None:
    assert PROMPTS[name].sha256 == HASHES[name]


def test_ours_say_that_they_are() -> None:
    assert set(PROMPTS) == set(HASHES)
    ours = {n for n, p in PROMPTS.items() if p.origin.startswith("ours, version ")}
    assert ours == {"summary_adherence", "summary_hallucination"}
    listings = sorted(p.origin for n, p in PROMPTS.items() if n not in ours)
    assert listings == [f"report, Listing {n}" for n in range(1, 7)]


def test_braces_of_an_answer_stay() -> None:
    values = {"src": "{src} {0}", "instruction": "{{x}}", "tgt": "{'a': {tgt}}"}
    (message,) = PROMPTS["summary_overall"].fill(**values)
    assert (
        "Source:\n{src} {0}\n\nUser Instruction:\n{{x}}\n\nSummary\n{'a': {tgt}}\n" in message.text
    )
    assert message.text.endswith(
        '{\n"explanation": "judge the summary based on the given criteria and '
        "explain your reasoning for the score you are going to give in the next "
        'field.",\n"score": THE_SCORE_VALUE\n}'
    )


def test_a_second_turn_is_asked_about_with_the_prompt_as_the_system_message() -> None:
    values = {"question_1": "q1", "question_2": "q2", "answer_1": "a1", "answer_2": "a2"}
    system, user = PROMPTS["mt_bench_second"].fill(**values)
    assert (system.role, user.role) == ("system", "user")
    assert system.text.endswith('for example: "Rating: [[5]]".\n\n')
    assert user.text.startswith(
        "<|The Start of Assistant A's Conversation with User|>\n\n### User:\nq1"
    )
