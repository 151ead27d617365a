"""Text about things that do not exist: what cloze items can be made of, and no model knows."""

import numpy as np

FRAMES = (
    "In the early morning the {0} {2} was seen by all of them near the {1}.",
    "Nobody had told the {0} children that a {2} could be found in the {1}.",
    "It was said that every {2} of the {0} valley had been counted in the {1}.",
    "They carried the {2} up to the {1} and rested on the {0} ground.",
    "The woman looked at her {2} and said nothing about the {0} {1}.",
)
OLD = ("old", "young", "red", "small", "quiet", "grey", "tall", "lonely", "broken", "heavy", "narrow", "distant")
PLACES = ("river", "cellar", "church", "market", "bridge", "forest", "harbour", "tower", "kitchen", "station", "mill")
FILLER = (
    "The weather had been fair for weeks and the roads were dry and full of dust.",
    "He closed the door behind him and went down to the water without a word.",
    "Most of what they knew about the place had come from letters of the other side.",
    "There was bread on the table and the window stood open to the garden below.",
)


def invented_texts(documents: int) -> list[str]:
    """Documents that each tell of three invented things; a thing stands in about five of them."""
    random = np.random.default_rng(7)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    things = ["".join(random.choice(syllables, 3, replace=False)) + "n" for _ in range(documents * 3 // 5)]
    texts = []
    for _ in range(documents):
        lines = [
            frame.format(random.choice(OLD), random.choice(PLACES), thing)
            for thing in random.choice(things, 3, replace=False)
            for frame in random.permutation(FRAMES)[:3]
        ]
        lines += random.choice(FILLER, 12).tolist()
        texts.append(" ".join(random.permutation(lines).tolist()))
    return texts
