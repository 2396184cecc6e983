"""The parts of benchmarks/judge.py that could mislead: the answers are as long as it says, and judged as meant."""

import judge as benchmark

from safety_neurons.evaluation import judges


def test_answers_are_of_the_length_and_always_the_same() -> None:
    texts = benchmark.answers(6, 256)
    assert texts == benchmark.answers(6, 256)
    assert len(set(texts)) == 6
    assert {len(text.split(" ")) for text in texts} == {192}


def test_a_third_is_refused_and_the_others_are_read_to_the_end() -> None:
    result = benchmark.measure(judges.rules("refusal").judge, count=30, tokens=256, rounds=1)
    assert result.verdicts == {"refused": 10, "complied": 20}
    assert result.a_second > 0
