"""The prompts that JailbreakBench publishes: what the best-known attacks found for its 100 behaviors.

They were made for another model than the one under test, so their success measures transfer.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import atomic_path, cache_folder, exists, read_bytes
from safety_neurons.core.folders import prepare_cache
from safety_neurons.core.plugins import unknown_name
from safety_neurons.evaluation.attacks.from_file import AttackFile, Missing, by_goal, matched, read_attack
from safety_neurons.evaluation.contracts import Attack, Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts.named import GITHUB
from safety_neurons.prompts.table import PromptRow

HOME = f"{GITHUB}/JailbreakBench/artifacts"
BUDGET = "one prompt a request, made beforehand for another model"
_OPEN = ("vicuna-13b-v1.5", "llama-2-7b-chat-hf")
_CLOSED = ("gpt-3.5-turbo-1106", "gpt-4-0125-preview")


class Published(NamedTuple):
    """Where a method's prompts are: `kinds` maps each model that they were made for to the access it was attacked with.

    A local file may also begin with one of the `aliases`.
    """

    method: str
    revision: str
    kinds: Mapping[str, str]
    source: str
    description: str
    aliases: tuple[str, ...] = ()


PUBLISHED = {
    "dsn": Published(
        method="DSN",
        revision="909e68c01d94222b8ad2e397a017e2e12e2adb73",
        kinds=dict.fromkeys(_OPEN, "white_box"),
        source="Zhou et al. 2024, Don't Say No (arXiv:2404.16369); prompts from JailbreakBench",
        description="Appends a suffix without meaning that was found on another model to make refusals unlikely.",
    ),
    "gcg": Published(
        method="GCG",
        revision="1b8eaeb1d71869cf2621cbe8f1f3dbf6b8fe8d4c",
        kinds=dict.fromkeys(_OPEN, "white_box") | dict.fromkeys(_CLOSED, "transfer"),
        source="Zou et al. 2023, Universal and Transferable Attacks (arXiv:2307.15043); prompts from JailbreakBench",
        description="Appends a suffix without meaning that gradients found on another model.",
    ),
    "jbc": Published(
        method="JBC",
        revision="1b8eaeb1d71869cf2621cbe8f1f3dbf6b8fe8d4c",
        kinds=dict.fromkeys((*_OPEN, *_CLOSED), "manual"),
        source="jailbreakchat.com; prompts from JailbreakBench (arXiv:2404.01318)",
        description="Sends the request to AIM, a persona without morals that users passed around.",
        aliases=("aim",),
    ),
    "pair": Published(
        method="PAIR",
        revision="1b8eaeb1d71869cf2621cbe8f1f3dbf6b8fe8d4c",
        kinds=dict.fromkeys((*_OPEN, *_CLOSED), "black_box"),
        source="Chao et al. 2023, Jailbreaking in Twenty Queries (arXiv:2310.08419); prompts from JailbreakBench",
        description="Sends the request as a language model rewrote it to get past another model.",
    ),
    "prompt-rs": Published(
        method="prompt_with_random_search",
        revision="1ca21dea45638450b1457a09da389cf9f700ed67",
        kinds=dict.fromkeys((*_OPEN, *_CLOSED), "black_box"),
        source="Andriushchenko et al. 2024, Jailbreaking Leading LLMs (arXiv:2404.02151); prompts from JailbreakBench",
        description="Sends the request in a template with rules and a suffix that random search found on another "
        "model.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Artifact(Attack):
    """The prompts made for the model `target`: from NAME.TARGET.jsonl in `folder`, or downloaded once.

    Without a folder, `attacks` in the folder with copies of public sets is searched before the network. A request
    without a prompt is skipped, or sent as it is with `missing=request`.

    Raises:
        SafetyNeuronsError: nothing was published for this target, and no folder is named.
    """

    target: str = "vicuna-13b-v1.5"
    folder: Path | None = None
    missing: Missing = "skip"

    def __post_init__(self) -> None:
        if self.folder is None and self.target not in self.published.kinds:
            raise SafetyNeuronsError(unknown_name(f"target of {self.short}", self.target, list(self.published.kinds)))

    @property
    def short(self) -> str:
        """The name without options."""
        return self.name.partition(":")[0]

    @property
    def published(self) -> Published:
        return PUBLISHED[self.short]

    @property
    def url(self) -> str:
        """Where the prompts for the target are published."""
        where = self.published
        return f"{HOME}/{where.revision}/attack-artifacts/{where.method}/{where.kinds[self.target]}/{self.target}.json"

    @property
    def cached(self) -> Path:
        """Where the downloaded prompts are cached."""
        return cache_folder() / "attacks" / self.published.revision[:12] / f"{self.short}.{self.target}.json"

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        if local := self._local(context):
            return matched(requests, read_attack(local), str(local), context, self.missing)
        if not exists(self.cached):
            self._download()
        try:
            prompts = read_artifact(read_bytes(self.cached), self.url)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"The cached copy of the attack {self.short}, {self.cached}, cannot be used: {error} Delete it, and it "
                "is downloaded again."
            ) from error
        return matched(requests, prompts, self.url, context, self.missing)

    def _local(self, context: EvaluationContext) -> Path | None:
        """The file of these prompts in the attack's own folder, or among the copies of public sets."""
        folder = self.folder or (context.copies and context.copies / "attacks")
        if folder is None:
            return None
        stems = (self.short, *self.published.aliases)
        usual, *others = (Path(os.path.expanduser(folder)) / f"{stem}.{self.target}.jsonl" for stem in stems)
        existing = next((path for path in (usual, *others) if exists(path)), None)
        # A folder that was named for this attack must contain the file.
        return existing or (usual if self.folder else None)

    def _download(self) -> None:
        # Imported late: urllib takes long to load.
        from safety_neurons.prompts.named import DownloadError, download

        try:
            content = download(self.url)
        except DownloadError as error:
            raise CannotRunError(
                f"The attack {self.short} could not be downloaded from {self.url} ({error}). Download that address on "
                f"another machine and save it as {self.cached}; or name a folder that has a file "
                f"{self.short}.{self.target}.jsonl with goals and prompts: {self.short}:folder=FOLDER."
            ) from error
        try:
            # Checked before it is cached: the login page of a network also comes with the status 200.
            read_artifact(content, self.url)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"The download for the attack {self.short} was not cached: {error} Open the address in a browser to "
                "see what it sends."
            ) from error
        prepare_cache(self.cached.parent)
        with atomic_path(self.cached) as temporary:
            temporary.write_bytes(content)


def read_artifact(content: bytes, source: str) -> AttackFile:
    """The prompts of a JailbreakBench artifact by normalized goal, without the requests that its attack gave up on.

    Raises:
        SafetyNeuronsError: the content is not an artifact.
    """
    try:
        rows = [
            PromptRow(place, {"goal": entry["goal"], "prompt": entry["prompt"]})
            for place, entry in enumerate(json.loads(content)["jailbreaks"], start=1)
            if entry["prompt"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SafetyNeuronsError(f"{source} is not a JailbreakBench artifact ({error!r}).") from error
    return by_goal(rows, source, "item")


ATTACKS = tuple(
    Artifact(name=name, source=where.source, description=where.description, budget=BUDGET)
    for name, where in PUBLISHED.items()
)
