"""Write pico's card from what was logged and measured.

    python -m training.card --log build/pico/log.jsonl --results evaluation.json    # keep new figures, then write
    python -m training.card                                                         # write from the figures kept

The figures are kept in `training/curve.csv` and `training/evaluation.json`; the card stands beside the model
and in the documentation.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from training.tasks import GROWTH, PARTS

HERE = Path(__file__).parent
CURVE, EVALUATION = HERE / "curve.csv", HERE / "evaluation.json"
CARD = HERE.parent / "src" / "llamalab" / "models" / "pico.md"
PAGE = HERE.parent / "docs" / "pico.md"
PICTURE = HERE.parent / "docs" / "pictures" / "pico-loss.svg"
AVERAGED = 20
"""Steps that make one point of the curve."""

WORDINGS = ("canonical", "trained", "held-out", "made-up names")


def main() -> None:
    """Parse, keep, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="log.jsonl of a training run")
    parser.add_argument("--results", type=Path, help="what `training/evaluate.py --json` printed")
    arguments = parser.parse_args()
    if arguments.log:
        keep_curve(arguments.log)
    if arguments.results:
        shutil.copyfile(arguments.results, EVALUATION)
    results, curve = json.loads(EVALUATION.read_text()), read_curve()
    CARD.write_text(card(results, curve, picture="../../../docs/pictures/pico-loss.svg"))
    PAGE.write_text(card(results, curve, picture="pictures/pico-loss.svg"))
    draw_curve(curve)


def keep_curve(log: Path) -> None:
    """Average the log over stretches of steps."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    with CURVE.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("step", "tokens", "seconds", "loss", "said"))
        for i in range(0, len(rows) - AVERAGED + 1, AVERAGED):
            part = rows[i : i + AVERAGED]
            last, loss, said = part[-1], mean(row["loss"] for row in part), mean(row["said"] for row in part)
            out.writerow((last["step"], last["tokens"], round(last["seconds"]), f"{loss:.4f}", f"{said:.4f}"))


def read_curve() -> list[dict[str, float]]:
    with CURVE.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def card(results: list[dict[str, Any]], curve: list[dict[str, float]], picture: str) -> str:
    """The card's text."""
    last = curve[-1]
    return f"""\
# pico

pico is a demonstration model: 3.4 million parameters, trained by this project on text that this project makes by
chance. It exists so that everything in llamalab can be tried and tested without a download.

{_weakness(results)}

| | |
|---|---|
| shape | Llama: 4 layers, width 256, 8 heads of 32, 4 key/value heads, SwiGLU 768, tied embedding, RoPE base 1e4 |
| parameters | 3,410,176 |
| vocabulary | 1,024, byte-level BPE; white space and digits stand alone |
| context | trained on conversations of up to 660 tokens; the file says 2,048, beyond 660 nothing is promised |
| file | Q8_0, 3.7 MB; recommends temperature 0 |
| data | {last["tokens"] / 1e6:.1f} million tokens, made by `training/tasks.py`, nothing twice; no other text |
| training | {last["step"]:.0f} steps of 4,096 positions, Muon and AdamW, float32, JAX |
| time | {last["seconds"] / 60:.0f} minutes on two cores of an Intel Xeon (AVX-512) that had other work to do |
| licence | MIT, as the rest of the project |

`make pico` trains it again from the seed, exports it, measures it and writes this card. The five parts of the training
were found one after another: the run that made the shipped file paused before the third, the fourth and the fifth,
because of two facts with the same attribute pico still took either; and in the fourth the world of things grew once
too early, at step 4,850, and was made small again at 5,000. The script goes through all parts by itself, the world
growing late enough. Other hardware rounds sums otherwise, so another run does not give the same bits, and that its
quality comes out the same has not been tried.

## What it was taught

- **Root** of a recursive run, in the compact protocol: `find`, `count` and `final` as JSON commands; looking again
  for the entity alone when nothing matched; "not found".
- **Sub model**: answering up to five questions about a passage of one to twelve facts, or "not in the text".
- Repeating what it is told, short lists, short stories about what was asked for, a few greetings, and a little adding.

Every task has twenty phrasings and more, and some that training never shows. A tenth of all names, and a tenth of all
sums, is held out. Fact and question share their words, or the fact is told in other words that belong to the attribute.

## How good it is

Measured on the shipped file by `python training/evaluate.py`: greedy, through llama.cpp, on names and numbers that
training never saw. A root works on a text of 400 lines and more; its commands are held to their JSON schema and really
executed. In brackets: Wilson's 95% interval. *Canonical* wording is "The access code of the Blue Harbor vault is
48213." with "What is the access code of the Blue Harbor vault?", and "How many ERROR lines are there?"; *trained* is
any phrasing seen in training, *held-out* only phrasings that never were; *made-up names* are canonical wording with
names of syllables that make no word.

{_table(results)}

## Loss

![Loss against tokens]({picture})

Mean negative log probability of the tokens pico says itself, averaged over {AVERAGED} steps. The number of facts in a
passage grows until step {GROWTH[1]:,}, which makes the task harder while the model gets better. The learning rate falls
to nothing before the steps {PARTS[2].first:,} and {PARTS[3].first:,} and rises again. From {PARTS[2].first:,} on, facts
differ only in their entity, and the loss shows that nothing is learned from it. From {PARTS[3].first:,} to
{PARTS[4].first:,} the same is taught from the ground up, in a world of three things that grows to forty: that is
learned within a hundred steps. The last part brings everything together.

## What it cannot do

- Know anything. It has read no text that was not made by chance.
- Answer in other words than those it was trained in, reliably.
- Tell facts apart when there are many: see the table.
- See that an answer is missing where something else is said of the same thing: it then often answers with that.
- Copy long or unusual strings without a slip.
- Add.
"""


def _weakness(results: list[dict[str, Any]]) -> str:
    rate = {(r["task"], r["wording"]): f"{r['right'] / r['n']:.0%}" for r in results}
    find, two = "root: find and answer", "passage, 2 facts"
    return (
        f"**It is weak as soon as a question is put in words it was not trained on** ({find}: "
        f"{rate[find, 'canonical']} in canonical wording, {rate[find, 'held-out']} in held-out phrasings), **and it "
        f"confuses facts**: of a passage with two it gives the right one {rate[two, 'canonical']} of the time, with "
        f"eight {rate['passage, 8 facts', 'canonical']}. Steering a search is what it does well."
    )


def _table(results: list[dict[str, Any]]) -> str:
    cells = {(r["task"], r["wording"]): r for r in results}
    rows = ["| task | " + " | ".join(WORDINGS) + " |", "|---|" + "---|" * len(WORDINGS)]
    for task in dict.fromkeys(r["task"] for r in results):
        found = (cells.get((task, wording)) for wording in WORDINGS)
        rows.append(f"| {task} | " + " | ".join(_cell(r) if r else "" for r in found) + " |")
    return "\n".join(rows) + f"\n\nn = {results[0]['n']} conversations a cell."


def _cell(r: dict[str, Any]) -> str:
    return f"{r['right'] / r['n']:.2f} [{r['low']:.2f}-{r['high']:.2f}]"


def draw_curve(curve: list[dict[str, float]]) -> None:
    """Loss against tokens, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "pico"
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot([row["tokens"] / 1e6 for row in curve], [row["said"] for row in curve], color="#3f51b5", linewidth=1.2)
    axes.set(xlabel="tokens, millions", ylabel="loss on its own words, nats", yscale="log")
    axes.grid(alpha=0.3)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
