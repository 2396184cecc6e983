"""The result of `explain`, and the tables it prints as."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from safety_neurons.core.tables import Table, numbers, words
from safety_neurons.core.terminal import TerminalTable
from safety_neurons.explanation.readout import readable
from safety_neurons.explanation.vocabulary import VocabularyTest
from safety_neurons.explanation.writes import SIDES, Side, Weighting

# Number of single neurons that a printed explanation names, and of their and of the suppressed words.
NAMED_NEURONS = 10
NAMED_WORDS = 5


@dataclass(frozen=True)
class NeuronWords:
    """A single neuron of a set: its layer, side, hook point (by number), index there, weight and words.

    `strength` is |weight| * norm of the write vector. The words are those of the write vector times the sign of the
    weight: a neuron whose activation falls on harmful prompts suppresses there what its vector promotes.
    """

    layer: int
    side: Side
    hook_point: int
    neuron: int
    weight: float
    strength: float
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]


@dataclass(frozen=True)
class SideWords:
    """The top tokens of one layer and side, promoted (`words`) and suppressed, and its strongest single neurons."""

    layer: int
    side: Side
    words: tuple[str, ...]
    logits: tuple[float, ...]
    suppressed: tuple[str, ...] = ()
    suppressed_logits: tuple[float, ...] = ()
    neurons: tuple[NeuronWords, ...] = ()


@dataclass(frozen=True)
class WriteShare:
    """The share of the safety neurons in what a layer's MLPs write at the last prompt position.

    Let s be the weighted write of the safety neurons of both sides and e that of all neurons of the layer, weighted by
    the mean activations on harmful prompts ("mean") or by these minus those on benign prompts ("difference"). `norm` is
    |s| / |e|; `projection` is s.e / |e|^2, so the shares of a set and of all other neurons add up to 1 (it can be
    negative or above 1); `cosine` is the cosine of s and e. All are 0 if either is 0. `neurons` is the share by number.
    The bias of the write matrix belongs to no neuron and is not counted.
    """

    layer: int
    weighting: Weighting
    neurons: float
    norm: float
    projection: float
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """Words per layer and side with neurons, shares of the write, and the vocabulary test. Prints as tables."""

    layers: tuple[SideWords, ...]
    weighting: Weighting
    shares: tuple[WriteShare, ...] = ()
    vocabulary: VocabularyTest | None = None

    def first_readable(self, side: Side) -> int | None:
        """The first layer with readable words; see `VocabularyTest.first_readable`."""
        return self.vocabulary.first_readable(side, self.weighting) if self.vocabulary else None

    def to_json(self) -> dict[str, Any]:
        """The parts of results.json: "words", "write_share" and, if it was run, the test as "vocabulary"."""
        found: dict[str, Any] = {
            "words": [asdict(layer) for layer in self.layers],
            "write_share": [asdict(share) for share in self.shares],
        }
        return found | ({"vocabulary": self.vocabulary.to_json()} if self.vocabulary else {})

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        tables = [_words_table(self)]
        if any(layer.neurons for layer in self.layers):
            tables.append(_neurons_table(self))
        if self.vocabulary:
            tables += self.vocabulary.tables(self.weighting)
        for table in tables:
            yield TerminalTable(table)
            yield ""

    def __str__(self) -> str:
        return printed(self)


def printed(renderable: RenderableType) -> str:
    """A rich renderable as plain text."""
    console = Console(width=110)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def _shown(words: tuple[str, ...]) -> str:
    return " ".join(readable(word) for word in words)


def _words_table(explanation: Explanation) -> Table:
    shares = {share.layer: share.projection for share in explanation.shares if share.weighting == explanation.weighting}
    sides: dict[int, dict[Side, SideWords]] = {}
    for layer in explanation.layers:
        sides.setdefault(layer.layer, {})[layer.side] = layer
    nothing = SideWords(0, "rejection", (), ())
    rows = []
    for number, found in sides.items():
        both = [found.get(side, nothing) for side in SIDES]
        share = f"{shares[number]:.0%}" if number in shares else ""
        rows.append([str(number), share, "+", *(_shown(side.words) for side in both)])
        if any(side.suppressed for side in both):
            rows.append(["", "", "-", *(_shown(side.suppressed[:NAMED_WORDS]) for side in both)])
    return Table.of(
        "What the safety neurons say: promoted (+), suppressed (-)",
        (*numbers("layer", "of write"), *words("", *(f"{side} neurons" for side in SIDES))),
        rows,
    )


def _neurons_table(explanation: Explanation) -> Table:
    neurons = sorted((each for layer in explanation.layers for each in layer.neurons), key=lambda each: -each.strength)
    return Table.of(
        "The strongest single neurons, each read alone",
        (*numbers("layer", "neuron"), *words("side", "promotes", "suppresses")),
        (
            (one.layer, one.neuron, one.side, _shown(one.promoted[:NAMED_WORDS]), _shown(one.suppressed[:NAMED_WORDS]))
            for one in neurons[:NAMED_NEURONS]
        ),
    )
