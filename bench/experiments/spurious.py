"""SCR and TPP, two scores of SAEBench (Karvonen et al. 2025), for erasers in one layer of a language model.

SCR, spurious correlation removal: a classifier learns from rows in which two attributes always go together. Does it
tell the right one, where they no longer do, once the other was erased? TPP, targeted probe perturbation: does erasing
one of several classes blind the probe of that class, and of no other?
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import leace_fast as lf

from . import gender, language_model
from .claims import Claim, Result, Table

SITE = "model.layers.14"  # the middle one of 30; a sentence is the mean of its tokens there, as in SAEBench
SENTENCES = {"fit": 1_200, "train": 1_000, "test": 800}
JOBS = ("nurse", "teacher", "lawyer", "farmer")  # the first two are one kind, the last two another
LEAST_COST = 0.05  # of accuracy: below it a correlation has cost too little to say what share came back
TEMPLATES = (
    "{name}, who is a {job}, said that {she} found the {thing} {mood}.",
    "{name} works as a {job}, and {she} thought that the {thing} was {mood}.",
    "My neighbour {name} is a {job}; {she} told me that the {thing} had been {mood}.",
)
# By part, so that none is met twice: things, and words of dislike or praise, which no score is about.
WORDS = {
    "fit": (
        ("film", "meal", "hotel", "book", "concert", "trip", "lecture", "garden"),
        ("terrible", "awful", "boring", "disappointing", "wonderful", "great", "excellent", "lovely"),
    ),
    "train": (
        ("play", "restaurant", "museum", "novel", "party", "flight"),
        ("horrible", "poor", "unpleasant", "amazing", "fantastic", "charming"),
    ),
    "test": (
        ("show", "dinner", "exhibition", "story", "wedding", "journey"),
        ("tedious", "nasty", "painful", "terrific", "enjoyable", "fascinating"),
    ),
}
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """Sentences of a part: what the model has (rows, dim), and the attributes of each (rows,)."""

    x: Tensor
    sex: Tensor
    job: Tensor

    @property
    def kind(self) -> Tensor:
        """The kind of the job, 0 or 1."""
        return self.job // 2


@dataclass(frozen=True)
class Scores:
    """Accuracy of the biased and of an unbiased classifier; SCR by method, of the former kept and of one trained anew.

    None are there where the correlation cost less than `LEAST_COST`.
    """

    before: float
    best: float
    by_method: dict[str, tuple[float, float]]


def scr(before: float, after: float, best: float) -> float:
    """Return the share of what a spurious correlation cost that was won back.

    Args:
        before: accuracy, on balanced rows, of the classifier that learned from correlated ones.
        after: the same with the spurious attribute erased.
        best: of a classifier that learned from balanced rows.

    Raises:
        ValueError: the correlation cost less than `LEAST_COST`.

    Source: Karvonen et al. 2025, https://arxiv.org/abs/2503.09532, section 4 (SCR).

    >>> scr(0.6, 0.8, 1.0)
    0.5
    """
    if not best - before >= LEAST_COST:
        raise ValueError(
            f"the classifier of correlated rows reaches {before}, that of balanced ones {best}: too little was lost to "
            "say what share came back"
        )
    return round((after - before) / (best - before), 12)


def tpp(clean: Tensor, erased: Tensor) -> float:
    """Return how much more accuracy erasing a class takes from the probe of that class than from the others' probes.

    Args:
        clean: (classes,) accuracy of each class's probe.
        erased: (classes, classes) the same with class i erased, for probe j.

    Raises:
        ValueError: the shapes do not fit, or there is one class only.

    Source: Karvonen et al. 2025, https://arxiv.org/abs/2503.09532, section 4 (TPP).

    >>> tpp(torch.tensor([1.0, 1.0]), torch.tensor([[0.5, 1.0], [0.9, 0.5]]))
    0.45
    """
    count = len(clean)
    if count < 2 or erased.shape != (count, count):
        raise ValueError(f"shapes {tuple(clean.shape)} and {tuple(erased.shape)}, expected (k,) and (k, k), k above 1")
    drop = clean.double() - erased.double()
    own = drop.diagonal().mean()
    others = (drop.sum() - drop.diagonal().sum()) / (count * (count - 1))
    return round(float(own - others), 6)


def rows_of(part: str) -> Rows:
    """Return the rows of a part: sentences drawn at random, each attribute independent of the others."""
    model, tokenizer = language_model.load()
    begin, end = gender.PARTS[part]
    people = [every[begin:end] for every in gender.names()]
    things, moods = WORDS[part]
    generator = random.Random(f"sentences to {part}")
    texts, labels = [], []
    for _ in range(SENTENCES[part]):
        sex, job = generator.randrange(2), generator.randrange(len(JOBS))
        words = {"name": generator.choice(people[sex]), "she": ("she", "he")[sex], "job": JOBS[job]}
        template = generator.choice(TEMPLATES)
        texts.append(template.format(thing=generator.choice(things), mood=generator.choice(moods), **words))
        labels.append((sex, job))
    ids, mask = language_model.padded(tokenizer(texts)["input_ids"])
    means = []
    for some, kept in zip(ids.split(100), mask.split(100), strict=True):
        x = language_model.hidden(SITE, some, kept)
        means.append((x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True))
    return Rows(torch.cat(means).double(), *torch.tensor(labels).unbind(1))


def classifier(x: Tensor, y: Tensor) -> Predict:
    """Return a logistic regression of standardised rows."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x.numpy(), y.numpy())
    return lambda rows: torch.from_numpy(model.predict(rows.numpy()))


def accuracy(predict: Predict, x: Tensor, y: Tensor) -> float:
    """Return the share of rows that are named rightly."""
    return float((predict(x) == y).double().mean())


def erasers_of(x: Tensor, y: Tensor, classes: int = 2) -> dict[str, lf.Eraser]:
    """Return an eraser of rank 1 by each method."""
    moments = lf.Moments(x.shape[1], classes).update(x, y)
    batches = list(zip(x.split(100), y.split(100), strict=True))
    return {
        "leace": lf.leace(moments),
        "orth": lf.methods.orth(moments),
        "inlp": lf.methods.inlp(batches, classifier="logistic", rank=1),
        "random": lf.methods.random_subspace(moments, 1),
    }


def measure_scr(parts: Mapping[str, Rows], wanted: str, spurious: str) -> Scores:
    """Return the scores of one attribute that is wanted and another that is spurious."""
    fit, train, test = (parts[part] for part in ("fit", "train", "test"))
    y, test_y = getattr(train, wanted), getattr(test, wanted)
    together = y == getattr(train, spurious)
    biased = classifier(train.x[together], y[together])
    before = accuracy(biased, test.x, test_y)
    # as many rows as the biased one had, of all four kinds
    some = slice(int(together.sum()))
    best = accuracy(classifier(train.x[some], y[some]), test.x, test_y)
    found = {}
    for name, eraser in erasers_of(fit.x, getattr(fit, spurious)).items():
        again = classifier(eraser(train.x[together]), y[together])
        kept, anew = (accuracy(one, eraser(test.x), test_y) for one in (biased, again))
        if best - before >= LEAST_COST:
            found[name] = scr(before, kept, best), scr(before, anew, best)
    return Scores(before, best, found)


def measure_tpp(parts: Mapping[str, Rows]) -> dict[str, float]:
    """Return TPP by method: probes of each job against the rest, trained on clean rows and kept."""
    fit, train, test = (parts[part] for part in ("fit", "train", "test"))
    probes, chosen = [], []
    for job in range(len(JOBS)):
        kept = balanced(train.job == job)
        probes.append(classifier(train.x[kept], (train.job == job)[kept].long()))
        chosen.append(balanced(test.job == job))

    def accuracies(eraser: lf.Eraser | None) -> Tensor:
        x = test.x if eraser is None else eraser(test.x)
        kept = zip(probes, chosen, range(len(JOBS)), strict=True)
        return torch.tensor([accuracy(probe, x[some], (test.job == job)[some].long()) for probe, some, job in kept])

    by_job = [erasers_of(fit.x, (fit.job == job).long()) for job in range(len(JOBS))]
    clean = accuracies(None)
    return {name: tpp(clean, torch.stack([accuracies(made[name]) for made in by_job])) for name in by_job[0]}


def balanced(positive: Tensor) -> Tensor:
    """Return the places of all rows of a class and of as many others, the first ones.

    >>> balanced(torch.tensor([True, False, False, True, False])).tolist()
    [0, 1, 2, 3]
    """
    yes, no = positive.nonzero().flatten(), (~positive).nonzero().flatten()
    return torch.cat([yes, no[: len(yes)]]).sort().values


def mean_of(found: Iterable[Scores], name: str, which: int) -> float:
    """Return the mean SCR of a method over the directions that are scored; not a number where none is."""
    scores = [each.by_method[name][which] for each in found if each.by_method]
    return sum(scores) / len(scores) if scores else float("nan")


def run() -> Result:
    """Return what was found."""
    parts = {part: rows_of(part) for part in SENTENCES}
    pairs = {"job, sex spurious": ("kind", "sex"), "sex, job spurious": ("sex", "kind")}
    found = {title: measure_scr(parts, *pair) for title, pair in pairs.items()}
    targeted = measure_tpp(parts)
    every = list(found.values())
    rows = []
    for name in targeted:
        shown = [each.by_method.get(name) for each in every]
        cells = [f"{pair[which]:.2f}" if pair else "not scored" for pair in shown for which in (0, 1)]
        rows.append([f"`{name}`" if name != "random" else "random subspace", *cells, f"{targeted[name]:.3f}"])
    heading = [
        "eraser, rank 1",
        *(f"SCR: {title}; {how}" for title in found for how in ("kept", "trained anew")),
        "TPP",
    ]
    sizes: dict[str, int | float | str] = {f"sentences to {part}": count for part, count in SENTENCES.items()}
    for title, each in found.items():
        sizes[f"{title}: accuracy of the biased and of an unbiased classifier"] = f"{each.before:.3f}, {each.best:.3f}"
    return Result(
        title="SCR and TPP",
        sizes=sizes,
        claims=[
            Claim("LEACE: SCR, the classifier kept", mean_of(every, "leace", 0), at_least=0.9),
            Claim("LEACE: SCR, the classifier trained anew", mean_of(every, "leace", 1), at_least=0.9),
            Claim("INLP, rank 1: SCR, the classifier trained anew", mean_of(every, "inlp", 1), at_most=0.5),
            Claim("a random direction: SCR, the classifier kept", mean_of(every, "random", 0), at_most=0.05),
            Claim("a random direction: SCR, the classifier trained anew", mean_of(every, "random", 1), at_most=0.05),
            Claim("LEACE: TPP, where a probe can lose one half", targeted["leace"], at_least=0.45),
        ],
        tables=[Table("Scores", heading, rows)],
        series={
            "scr": {name: [mean_of(every, name, which) for which in (0, 1)] for name in targeted},
            "tpp": targeted,
        },
    )
