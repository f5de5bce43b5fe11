"""The word embedding association test of Caliskan, Bryson and Narayanan 2017, with its sets of names and words."""

from __future__ import annotations

import torch
from torch import Tensor

WOMEN = ["amy", "joan", "lisa", "sarah", "diana", "kate", "ann", "donna"]
MEN = ["john", "paul", "mike", "kevin", "steve", "greg", "jeff", "bill"]
FAMILY = ["home", "parents", "children", "family", "cousins", "marriage", "wedding", "relatives"]
CAREER = ["executive", "management", "professional", "corporation", "salary", "office", "business", "career"]
ARTS = ["poetry", "art", "dance", "literature", "novel", "symphony", "drama", "sculpture"]
MATHS = ["math", "algebra", "geometry", "calculus", "equations", "computation", "numbers", "addition"]
SCIENCE = ["science", "technology", "physics", "chemistry", "einstein", "nasa", "experiment", "astronomy"]

# Names of women and of men; then the words that stereotype puts with the first, and with the second.
TESTS = {
    "family, career": (WOMEN, MEN, FAMILY, CAREER),
    "arts, maths": (WOMEN, MEN, ARTS, MATHS),
    "arts, science": (WOMEN, MEN, ARTS, SCIENCE),
}


def effect_size(first: Tensor, second: Tensor, near_first: Tensor, near_second: Tensor) -> float:
    """Return how much more `first` than `second` is associated with `near_first` rather than `near_second`.

    An association is the mean cosine with one set less that with the other; the effect is the difference of the mean
    associations over their standard deviation, -2 to 2.

    Args:
        first, second, near_first, near_second: (n, d), each a set of vectors.

    Raises:
        ValueError: a set is empty, or all associations are the same.

    Source: Caliskan et al. 2017, https://arxiv.org/abs/1608.07187.

    >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> effect_size(torch.cat([x, x]), torch.cat([y, y]), x, y) > 1.7
    True
    """
    sets = (first, second, near_first, near_second)
    if not all(len(rows) for rows in sets):
        raise ValueError(f"sets of {', '.join(str(len(rows)) for rows in sets)} vectors, expected some in each")
    a, b, near_a, near_b = (rows / rows.norm(dim=1, keepdim=True) for rows in sets)
    names = torch.cat([a, b])
    associations = (names @ near_a.mT).mean(1) - (names @ near_b.mT).mean(1)
    deviation = associations.std()
    if not deviation > 1e-6:
        raise ValueError("all vectors are associated alike, so that there is no deviation to measure by")
    return float((associations[: len(a)].mean() - associations[len(a) :].mean()) / deviation)
