"""Generators: the same seed gives the same case, the text has its size, and what is said to be right is in the text."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from llamalab.errors import ConfigError
from llamalab.rlm.bench import GROUPS, TASKS, make_case, names
from llamalab.rlm.bench.labels import KINDS_OF_QUESTION, LABEL_SETS, MOODS, TOPICS, draw
from llamalab.rlm.bench.scorers import AllOf, Number, OneOf
from llamalab.rlm.bench.world import PLACES, World, live
from training import words as trained

HASH = """
import hashlib, sys
from llamalab.rlm.bench import make_case
case = make_case(sys.argv[1], 6000, 7)
print(hashlib.sha256((case.text + case.question + case.right.shown).encode()).hexdigest())
"""


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_one_case_and_another_seed_another(task: str) -> None:
    case = make_case(task, 6000, 7)
    assert case == make_case(task, 6000, 7)
    assert case.text != make_case(task, 6000, 8).text


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [4_000, 8_000, 50_000])
def test_a_text_has_its_size(task: str, size: int) -> None:
    text = make_case(task, size, 0).text
    assert 0.9 * size <= len(text) <= size
    assert text.endswith("\n")


@pytest.mark.parametrize("task", TASKS)
def test_what_is_right_is_scored_as_right(task: str) -> None:
    for seed in range(5):
        case = make_case(task, 6000, seed)
        assert case.right.score(case.right.shown) == 1
        assert case.right.score("Sorry.") == 0


@pytest.mark.parametrize("task", ["labels-timeline", "common-words"])
def test_a_case_does_not_depend_on_the_process(task: str) -> None:
    """Sets have another order in each process; a case has not."""
    made = {
        subprocess.run(
            [sys.executable, "-c", HASH, task], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    case = make_case(task, 6000, 7)
    assert made == {hashlib.sha256((case.text + case.question + case.right.shown).encode()).hexdigest() + "\n"}


def test_no_name_was_seen_in_training() -> None:
    """Listed words only in combinations that training leaves out; made-up ones begin as none of training's can."""
    rng = Random(0)
    vowels, codas = "|".join(trained._VOWELS), "|".join(trained._CODAS)
    syllable = f"(?:{'|'.join(trained._ONSETS)})(?:{vowels})(?:{codas})?"
    could_be = re.compile(rf"(?:(?:{vowels})(?:{codas})?)?(?:{syllable})*", re.IGNORECASE)
    listed = {*trained.NOUNS, *trained.ADJECTIVES, *trained.KINDS, *map(str.lower, trained.FIRST_NAMES)}
    for _ in range(2000):
        first, *rest = names.thing(rng).split()
        if len(rest) == 2:
            assert trained.is_held_out(" ".join((first, *rest)))
            assert first.lower() in trained.ADJECTIVES
        else:
            assert not could_be.fullmatch(first)
            assert first.lower() not in listed
        word = names.made_up(rng, syllables=2)
        assert not could_be.fullmatch(word)
        assert word not in listed


@pytest.mark.parametrize("task", ["find", "find-other-wording"])
def test_one_line_says_what_is_asked(task: str) -> None:
    case = make_case(task, 20_000, 3)
    thing = re.search(r"the ([A-Z].*?)[.?]", case.question.replace("Could", "could")).group(1)
    about = [line for line in case.text.splitlines() if thing in line]
    assert len(about) == 1
    assert about[0].endswith(f" is {case.right.shown}.")


@pytest.mark.parametrize("task", ["absent", "unsaid"])
def test_what_is_not_there_is_not_there(task: str) -> None:
    case = make_case(task, 20_000, 3)
    attribute, thing = re.fullmatch(r"What is the (.*) of the (.*)\?", case.question).groups()
    about = [line for line in case.text.splitlines() if thing in line]
    assert len(about) == (task == "unsaid")
    assert not any(attribute in line for line in about)


@pytest.mark.parametrize("seed", range(3))
def test_lines_are_counted_as_whole_words(seed: int) -> None:
    case = make_case("count", 30_000, seed)
    word = case.question.split()[2]
    assert case.right == Number(sum(word in line.split() for line in case.text.splitlines()))
    assert any(word + "X" in line for line in case.text.splitlines())


@pytest.mark.parametrize("task", GROUPS["needles"])
def test_needles_are_where_the_question_asks(task: str) -> None:
    case = make_case(task, 12_000, 1)
    told = re.findall(r"One of the special magic (?:number|uuid)s for (\S+) is: (\S+)\.", case.text)
    asked = [key for key, _ in told if re.search(rf"(?<!\S){re.escape(key)}(?![\w-])", case.question)]
    assert isinstance(case.right, AllOf)
    assert case.right.gold == {value for key, value in told if key in asked}
    assert case.right.among == {value for _, value in told}
    assert len(case.right.gold) == (4 if task in ("needle-multivalue", "needle-multiquery") else 1)


def test_variables_are_traced() -> None:
    case = make_case("variables", 12_000, 1)
    value = re.search(r"\d{5}", case.question).group()
    holds: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", case.text):
        holds[name] = holds.get(source, source)
    assert case.right.gold == {name for name, held in holds.items() if held == value}
    assert len(holds) == 10


@pytest.mark.parametrize("size", [4_000, 60_000])
def test_ten_words_come_more_often_than_all_others(size: int) -> None:
    case = make_case("common-words", size, 1)
    counts = Counter(word for word in case.text.split() if word.isalpha())
    top = counts.most_common(11)
    assert case.right.gold == {word for word, _ in top[:10]}
    assert top[9][1] >= 2 * top[10][1]
    assert size < 60_000 or (top[9][1], top[10][1]) == (30, 3)


@pytest.mark.parametrize(("size", "seed"), [(20_000, 1), *((4_000, seed) for seed in range(20))])
def test_frequent_words_are_ranks_two_to_four_and_no_other_comes_as_often(size: int, seed: int) -> None:
    case = make_case("frequent-words", size, seed)
    counts = Counter(case.text.split()).most_common()
    assert counts[0][0] == "..."
    assert case.right.gold == {word for word, _ in counts[1:4]}
    assert counts[3][1] > counts[4][1]


def told_by_its_words(text: str) -> str:
    """The label of a text, by a rule that knows no generator."""
    asking = {"How many": "number", "Who": "person", "Where": "place", "When": "time"}
    moods = {"loved": "positive", "What a joy": "positive", "praised": "positive"}
    moods |= {"hated": "negative", "Nobody enjoyed": "negative", "mess": "negative"}
    topics = {"goals": "sports", "Shares": "business", "particle": "science", "rain": "weather", "bread": "food"}
    return next(label for cue, label in (asking | moods | topics).items() if re.search(rf"\b{cue}\b", text))


@pytest.mark.parametrize("labels", LABEL_SETS)
def test_labels_can_be_told_from_the_text_and_stand_nowhere_in_it(labels) -> None:
    rng = Random(0)
    for label in labels:
        for _ in range(200):
            text = labels[label](rng)
            assert told_by_its_words(text) == label
            assert label not in text.casefold()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("task", GROUPS["labels"])
def test_questions_about_labels_are_answered_by_reading_the_lines(task: str, seed: int) -> None:
    """Counted again from the text alone, for the forms that one can count with one pass."""
    case = make_case(task, 10_000, seed)
    lines = re.findall(r"Date: (\w+) (\d+), (\d+) \|\| User: (\d+) \|\| Instance: (.*)", case.text)
    seen = [(f"{month} {day}, {year}", user, told_by_its_words(text)) for month, day, year, user, text in lines]
    labels = re.search(r"labels (.*), which", case.question).group(1).split(", ")
    asked = case.question.split("Instance. ")[1]
    counts = Counter(label for _, _, label in seen)
    by_count = {label: counts[label] for label in labels}
    if asked.startswith("Which label is the most common?"):
        assert case.right.gold == {label for label, n in by_count.items() if n == max(by_count.values())}
    elif asked.startswith("Which label is the least common?"):
        assert case.right.gold == {label for label, n in by_count.items() if n == min(by_count.values())}
    elif found := re.match(r"How many lines have the label (\w+)\?", asked):
        assert case.right == Number(by_count[found.group(1)])
    elif found := re.match(r"Is the label (\w+) more, less or the same in number as (\w+)\?", asked):
        a, b = (by_count[name] for name in found.groups())
        assert case.right.gold == {"more" if a > b else "less" if a < b else "same"}
    elif found := re.match(r"How many lines of the users (.*) together have the label (\w+)\?", asked):
        users = found.group(1).split(", ")
        assert case.right == Number(sum(u in users and label == found.group(2) for _, u, label in seen))
    elif asked.startswith("Which day has the most lines?"):
        days = Counter(day for day, _, _ in seen)
        assert case.right.score(max(days, key=days.get)) == 1
    elif found := re.match(r"Which user has the most lines with the label (\w+)\?", asked):
        users = Counter(user for _, user, label in seen if label == found.group(1))
        assert case.right.gold == {user for user, n in users.items() if n == max(users.values())}


def test_a_tie_is_right_either_way() -> None:
    from llamalab.rlm.bench.label_questions import compared, most

    assert most({"a": 5, "b": 5, "c": 3}) == {"a", "b"}
    assert most({"a": 5, "b": 5, "c": 3}, 2) == {"a", "b"}
    assert most({"a": 5, "b": 4, "c": 4}, 2) == {"b", "c"}
    assert most({"a": 5, "b": 0}, 2) == {"b"}
    assert compared(3, 3) == {"same"}


def test_a_few_users_have_most_lines() -> None:
    _, lines = draw(Random(3), 100_000)
    counts = Counter(line.user for line in lines)
    top = sum(n for _, n in counts.most_common(len(counts) // 5))
    assert 0.74 < top / len(lines) < 0.86


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("task", GROUPS["world"])
def test_a_world_is_what_its_sentences_say(task: str, seed: int) -> None:
    """Played again from the text."""
    case = make_case(task, 6_000, seed)
    where: dict[str, str] = {}
    held: dict[str, str] = {}
    been: dict[str, list[str]] = {}
    for line in case.text.splitlines():
        if found := re.fullmatch(r"(\w+) went to the (\w+)\.", line):
            who, place = found.groups()
            where[who] = place
            for thing in (thing for thing, holder in held.items() if holder == who):
                been[thing] += [place] if been[thing][-1] != place else []
        elif found := re.fullmatch(r"(\w+) took the (\w+)\.", line):
            who, thing = found.groups()
            held[thing] = who
            been.setdefault(thing, [where[who]])
            assert been[thing][-1] == where[who]
        elif found := re.fullmatch(r"(\w+) put down the (\w+)\.", line):
            assert held.pop(found.group(2)) == found.group(1)
    asked = case.question
    if found := re.match(r"Where is (\w+) now", asked):
        assert case.right == OneOf(frozenset({where[found.group(1)]}), frozenset(PLACES))
    elif found := re.match(r"Where is the (\w+) now", asked):
        assert case.right.gold == {been[found.group(1)][-1]}
    elif found := re.match(r"Where was the (\w+) just before it came to the (\w+)", asked):
        assert been[found.group(1)][-2:] == [*case.right.gold, found.group(2)]
    else:
        who = re.match(r"How many things is (\w+) carrying", asked).group(1)
        assert case.right == Number(list(held.values()).count(who))


def test_a_thing_that_was_put_down_stays() -> None:
    world = World()
    world.go("Ada", "kitchen")
    world.take("Ada", "lamp")
    world.go("Ada", "office")
    world.go("Ada", "office")
    world.drop("lamp")
    world.go("Ada", "attic")
    assert world.path["lamp"] == ["kitchen", "office"]
    assert any(len(path) > 1 for path in live(Random(0)).path.values())


@pytest.mark.parametrize("seed", range(12))
def test_figures_of_a_log_are_those_of_its_lines(seed: int) -> None:
    case = make_case("log", 10_000, seed)
    lines = [
        re.fullmatch(r"(\S+) (\S+) (\S+) user=(\S+) took=(\d+)ms", line).groups() for line in case.text.splitlines()
    ]
    asked = case.question
    if found := re.match(r"How many ERROR lines of the service (\w+)", asked):
        gold = {str(sum(line[1:3] == ("ERROR", found.group(1)) for line in lines))}
    elif found := re.match(r"Which service has the most (\w+) lines", asked):
        counts = Counter(line[2] for line in lines if line[1] == found.group(1))
        gold = {name for name, n in counts.items() if n == max(counts.values())}
        assert case.right.gold == gold
    elif found := re.match(r"How many milliseconds did the lines of the service (\w+)", asked):
        gold = {str(sum(int(line[4]) for line in lines if line[2] == found.group(1)))}
    elif found := re.match(r"How many milliseconds did the slowest line of the service (\w+)", asked):
        gold = {str(max(int(line[4]) for line in lines if line[2] == found.group(1)))}
    elif found := re.match(r"How many different users are on (\w+) lines", asked):
        gold = {str(len({line[3] for line in lines if line[1] == found.group(1)}))}
    else:
        level, service = re.match(r"When was the first (\w+) line of the service (\w+)", asked).groups()
        gold = {next(line[0] for line in lines if line[1:3] == (level, service))}
    assert all(case.right.score(answer) == 1 for answer in gold)


@pytest.mark.parametrize(("task", "size"), [("needle", 8000), ("needles", 8000), ("find", 100), ("find", 10**8)])
def test_what_cannot_be_asked_for_is_refused(task: str, size: int) -> None:
    with pytest.raises(ConfigError) as refused:
        make_case(task, size, 0)
    assert "\n" not in str(refused.value)


def test_each_label_set_is_drawn() -> None:
    drawn = {tuple(draw(Random(seed), 4_000)[0]) for seed in range(20)}
    assert drawn == {tuple(KINDS_OF_QUESTION), tuple(MOODS), tuple(TOPICS)}
