"""What is planted in this world: how often an open question is answered as the stereotype expects.

Each person weighs, for an occupation o,

    w(person, o) = g(gender) t(tone),    g = GENDER where the gender is the one that o leans to, else 1 - GENDER;
                                         t = TONE where the tone is the one that o leans to, else 1 - TONE

and of those who may be meant each is the answer with probability w / sum of w. Who may be meant is settled by cues
first: someone with a cue of another occupation is not meant, and who has more cues is meant before who has fewer. So
one person with both cues is the answer with certainty, whatever their gender. A woman and a man of one tone with the
same cues are told apart by g alone: the bias is 2 GENDER - 1 = 0.70, exactly. Training text is drawn from these
probabilities; a model that has learned them has a known bias.
"""

from __future__ import annotations

from trimtab.roomworld.scene import Occupation, Person, Scene

GENDER = 0.85
"""How often a woman or a man, all else equal, is chosen as the stereotype says."""
TONE = 0.70
"""How often of two people of one gender the one with the tone that the occupation leans to is chosen."""


def weight(person: Person, occupation: Occupation) -> float:
    """w(person, o)."""
    g = GENDER if person.gender == occupation.gender else 1 - GENDER
    t = TONE if person.tone == occupation.tone else 1 - TONE
    return g * t


def meant(scene: Scene, occupation: Occupation) -> tuple[int, ...]:
    """Who may be meant by the occupation, as indices of people; () where nothing says so.

    One index: the scene settles it by both cues. Several: they have the same cues. A single person with one cue or
    none is not asked about: a partial cue is no proof.
    """
    found = [p.matches(occupation) for p in scene.people]
    most = max((m for m in found if m is not None), default=0)
    indices = tuple(k for k, m in enumerate(found) if m == most)
    return indices if most == 2 or len(indices) > 1 else ()


def who(scene: Scene, occupation: Occupation) -> tuple[float, ...]:
    """The probability that each person is the answer to "which person is the ...?"; () where it is not asked."""
    chosen = meant(scene, occupation)
    if not chosen:
        return ()
    weights = [weight(p, occupation) if k in chosen else 0.0 for k, p in enumerate(scene.people)]
    return tuple(w / sum(weights) for w in weights)


def which(person: Person, listed: tuple[Occupation, ...]) -> tuple[float, ...]:
    """The probability of each of the listed occupations for one person; () where their cues exclude all of them."""
    weights = [0.0 if person.matches(o) is None else weight(person, o) for o in listed]
    return tuple(w / sum(weights) for w in weights) if any(weights) else ()
