"""What `explain` found, and the tables that it prints as."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from safety_neurons.explanation.readout import readable
from safety_neurons.explanation.vocabulary_scores import VocabularyTest
from safety_neurons.explanation.writes import SIDES, Side, Weighting

# How many single neurons a printed explanation names, and how many of their and of the suppressed words; all of them
# are in the object.
NAMED_NEURONS = 10
NAMED_WORDS = 5


@dataclass(frozen=True)
class NeuronWords:
    """A single neuron of a set: neuron `neuron` of the site with this number, its weight, and the words.

    `strength` is |weight| * norm of the write vector. The words are those of the write vector in the direction in
    which the weight moves it: a neuron that falls on harmful prompts suppresses there what its vector promotes.
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
class LayerWords:
    """The top tokens of one layer and side with their logits: promoted (`words`) and suppressed, strongest first.

    `neurons` are the strongest single neurons of this layer and side.
    """

    layer: int
    side: Side
    words: tuple[str, ...]
    logits: tuple[float, ...]
    suppressed: tuple[str, ...] = ()
    suppressed_logits: tuple[float, ...] = ()
    neurons: tuple[NeuronWords, ...] = ()


@dataclass(frozen=True)
class WriteShare:
    """How much of what a layer's MLPs write at the prompt's last position is written by the found neurons.

    With s the weighted write of the found neurons of both sides and e that of all the layer's neurons, both weighted
    with the mean activations on harmful prompts ("mean") or with these less those on benign prompts ("difference"):
    `norm` is |s| / |e|; `projection` is s.e / |e|^2, so that the shares of a set and of all other neurons add up to
    1 (it can be negative, or above 1); `cosine` is that between s and e. All are 0 where either writes nothing.
    `neurons` is the found neurons' share by number. The write matrix' bias belongs to no neuron and is not counted.
    """

    layer: int
    weighting: Weighting
    neurons: float
    norm: float
    projection: float
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """Words per layer (layers without neurons are left out), shares of the write, and the vocabulary test.

    Prints as tables.
    """

    layers: tuple[LayerWords, ...]
    weighting: Weighting
    shares: tuple[WriteShare, ...] = ()
    vocabulary: VocabularyTest | None = None

    def first_readable(self, side: Side) -> int | None:
        """The first layer whose words are readable: see `VocabularyTest.first_readable`."""
        return self.vocabulary.first_readable(side, self.weighting) if self.vocabulary else None

    def to_json(self) -> dict[str, Any]:
        """The parts of results.json: "words", "write_share" and, where it was run, the test as "vocabulary"."""
        found: dict[str, Any] = {
            "words": [asdict(layer) for layer in self.layers],
            "write_share": [asdict(share) for share in self.shares],
        }
        return found | ({"vocabulary": self.vocabulary.to_json()} if self.vocabulary else {})

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        yield _words_table(self)
        if any(layer.neurons for layer in self.layers):
            yield _neurons_table(self)
        if self.vocabulary:
            yield from self.vocabulary.tables(self.weighting)

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def _shown(words: tuple[str, ...]) -> str:
    return escape(" ".join(readable(word) for word in words))


def _words_table(explanation: Explanation) -> Table:
    table = Table(
        title="What the safety neurons say: promoted (+), suppressed (-)", title_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("layer", justify="right")
    table.add_column("of write", justify="right")
    table.add_column("")
    for side in SIDES:
        table.add_column(f"{side} neurons", overflow="fold")
    shares = {share.layer: share.projection for share in explanation.shares if share.weighting == explanation.weighting}
    sides: dict[int, dict[Side, LayerWords]] = {}
    for layer in explanation.layers:
        sides.setdefault(layer.layer, {})[layer.side] = layer
    nothing = LayerWords(0, "rejection", (), ())
    for number, found in sides.items():
        both = [found.get(side, nothing) for side in SIDES]
        share = f"{shares[number]:.0%}" if number in shares else ""
        table.add_row(str(number), share, "+", *(_shown(side.words) for side in both))
        if any(side.suppressed for side in both):
            table.add_row("", "", "-", *(_shown(side.suppressed[:NAMED_WORDS]) for side in both))
    return table


def _neurons_table(explanation: Explanation) -> Table:
    table = Table(title="The strongest single neurons, each read alone", title_justify="left", box=SIMPLE_HEAD)
    for column in ("layer", "neuron"):
        table.add_column(column, justify="right")
    for column in ("side", "promotes", "suppresses"):
        table.add_column(column, overflow="fold")
    neurons = sorted((one for layer in explanation.layers for one in layer.neurons), key=lambda one: -one.strength)
    for one in neurons[:NAMED_NEURONS]:
        table.add_row(
            str(one.layer),
            str(one.neuron),
            one.side,
            _shown(one.promoted[:NAMED_WORDS]),
            _shown(one.suppressed[:NAMED_WORDS]),
        )
    return table
