"""How policies are shown: a name, a colour, a line style, and what they do."""

from typing import NamedTuple


class Label(NamedTuple):
    """One policy's looks and its description, which follows its name in a sentence."""

    name: str
    colour: str
    dashes: tuple[float, ...]  # lengths on and off, in line widths; () is solid
    does: str


_SOLID: tuple[float, ...] = ()
_DASHED, _DOTTED, _DASH_DOT = (4.0, 1.6), (1.0, 1.4), (5.0, 1.5, 1.0, 1.5)

# Colours after Okabe and Ito (2008) and Tol (2021), told apart with any colour vision;
# where policies share a hue, the line style differs.
LABELS = {
    "polar": Label(
        "POLAR", "#0072B2", _SOLID, "replans its set with a greedy search at fixed epochs"
    ),
    "polar_plus": Label(
        "POLAR+",
        "#009E73",
        _SOLID,
        "doubles its epochs, explores by quota and replans with an exact search where it can",
    ),
    "polar_admit": Label(
        "POLAR-A",
        "#56B4E9",
        _SOLID,
        "explores like POLAR+ and admits an adapter on a miss by a decayed estimate of its value",
    ),
    "polar_experts": Label(
        "POLAR-E",
        "#D55E00",
        _SOLID,
        "scores several virtual caches on every request and follows the best, loading only what "
        "a request has paid for or would have lost as much without",
    ),
    "lru": Label(
        "LRU",
        "#882255",
        _DASHED,
        "admits on every miss and evicts the least recently used, as serving systems do today",
    ),
    "lfu": Label("LFU", "#CC79A7", _DASHED, "admits on every miss and evicts the least often used"),
    "gdsf": Label(
        "GDSF",
        "#999933",
        _DASHED,
        "admits on every miss and evicts by frequency times cost (GreedyDual-Size-Frequency)",
    ),
    "landlord": Label(
        "Landlord",
        "#AA4499",
        _DASHED,
        "admits on every miss and charges all residents rent until one cannot pay",
    ),
    "arc": Label(
        "ARC",
        "#44AA99",
        _DASHED,
        "admits on every miss and balances recent against repeated use (adaptive replacement)",
    ),
    "lecar": Label(
        "LeCaR",
        "#117733",
        _DASHED,
        "admits on every miss and evicts as LRU or LFU, by lot with weights learnt from regret",
    ),
    "fastlibra": Label(
        "FastLibra",
        "#DDAA33",
        _DASHED,
        "admits on every miss and evicts the least probable use times cost",
    ),
    "polar_oexp": Label(
        "POLAR-O",
        "#6699CC",
        _SOLID,
        "draws its set at fixed epochs by online submodular maximisation, the one with a bound",
    ),
    "static": Label("Static", "#777777", _DASH_DOT, "keeps the set it was given"),
    "no_cache": Label("No cache", "#BBBBBB", _DASH_DOT, "holds nothing and pages on every request"),
    "full_cache": Label("Full cache", "#000000", _DASHED, "holds every adapter, whatever K is"),
    "oracle_cache": Label(
        "Oracle cache",
        "#000000",
        _DOTTED,
        "holds the best static set from the start and learns to route",
    ),
    "oracle": Label(
        "Oracle", "#000000", _SOLID, "holds the best static set and routes perfectly: regret zero"
    ),
    "cost_blind": Label(
        "Cost-blind", "#E69F00", _DOTTED, "is POLAR-E whose router ignores the paging cost"
    ),
    "no_forced": Label(
        "POLAR-E unforced", "#F2A77A", _DOTTED, "is POLAR-E without forced exploration"
    ),
    "polar_plus_no_forced": Label(
        "POLAR+ unforced", "#7FCEB9", _DOTTED, "is POLAR+ without forced exploration"
    ),
    "epsilon_greedy": Label(
        "ε-greedy", "#332288", _DASH_DOT, "has POLAR-E's cache and an ε-greedy router"
    ),
    "lin_ts": Label(
        "Thompson", "#88AA55", _DASH_DOT, "has POLAR-E's cache and a Thompson-sampling router"
    ),
    "random": Label(
        "Random", "#661100", _DASH_DOT, "has POLAR-E's cache and routes uniformly at random"
    ),
}


def label(policy: str) -> Label:
    """A policy's label; a plain one for policies made elsewhere.

    Args:
      policy: its name.
    """
    return LABELS.get(policy, Label(policy, "#332288", _DOTTED, "is a policy of your own"))
