"""The jailbreak prompts that JailbreakBench publishes: what the best-known attacks found on its 100 behaviours.

They were made for another model than the one under test, so that their success says how well they carry over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safety_neurons.core.errors import CannotRunError, SafetyNeuronsError
from safety_neurons.core.files import atomic_path, cache_folder
from safety_neurons.core.plugins import unknown_name
from safety_neurons.evaluation.attacks.from_file import by_goal, matched, read_attack
from safety_neurons.evaluation.contracts import Attack, Defended, EvaluationContext
from safety_neurons.models.chat import AttackedPrompt
from safety_neurons.prompts.named import GITHUB
from safety_neurons.prompts.read import PromptRow

HOME = f"{GITHUB}/JailbreakBench/artifacts"
BUDGET = "one prompt a request, made beforehand for another model"


@dataclass(frozen=True)
class Published:
    """Where the prompts of a method are: `kinds` has the models that they were made for, and with what access.

    A local file may also begin with one of the `aliases`.
    """

    method: str
    revision: str
    kinds: Mapping[str, str]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Artifact(Attack):
    """The prompts made for the model `target`: from NAME.TARGET.jsonl in `folder`, or downloaded once.

    Where no folder is given, `attacks` in the folder with copies of public sets is searched before the network.

    Raises:
        SafetyNeuronsError: nothing was published for this target, and no folder is given.
    """

    published: ClassVar[Published]
    target: str = "vicuna-13b-v1.5"
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is None and self.target not in self.published.kinds:
            raise SafetyNeuronsError(unknown_name(f"target of {self.short}", self.target, list(self.published.kinds)))

    @property
    def short(self) -> str:
        """The name without options."""
        return self.name.partition(":")[0]

    @property
    def url(self) -> str:
        """Where the prompts for the target are published."""
        where = self.published
        return f"{HOME}/{where.revision}/attack-artifacts/{where.method}/{where.kinds[self.target]}/{self.target}.json"

    @property
    def kept(self) -> Path:
        """Where they are kept once they are downloaded."""
        return cache_folder() / "attacks" / self.published.revision[:12] / f"{self.short}.{self.target}.json"

    def prompts(
        self, requests: Sequence[str], defended: Defended, context: EvaluationContext
    ) -> Sequence[AttackedPrompt | None]:
        local = self._local(context)
        if local is not None:
            return matched(requests, read_attack(local), str(local))
        if not self.kept.exists():
            self._download()
        try:
            found = read_artifact(self.kept.read_bytes(), self.url)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"The kept copy of the attack {self.short}, {self.kept}, cannot be used: {error} Delete it, and it is "
                "downloaded again."
            ) from error
        return matched(requests, found, self.url)

    def reads(self, context: EvaluationContext) -> Sequence[Path]:
        local = self._local(context)
        return () if local is None else (local,)

    def _local(self, context: EvaluationContext) -> Path | None:
        folder = self.folder or (context.copies and context.copies / "attacks")
        if folder is None:
            return None
        stems = (self.short, *self.published.aliases)
        usual, *others = (folder.expanduser() / f"{stem}.{self.target}.jsonl" for stem in stems)
        found = next((path for path in (usual, *others) if path.exists()), None)
        # A folder that was named for this attack has to hold it.
        return found if self.folder is None else found or usual

    def _download(self) -> None:
        # Imported here: urllib takes long to load.
        from safety_neurons.prompts.named import DownloadError, download

        try:
            content = download(self.url)
        except DownloadError as error:
            raise CannotRunError(
                f"The attack {self.short} could not be downloaded from {self.url} ({error}). Download that address on "
                f"another machine and save it as {self.kept}; or name a folder that has a file "
                f"{self.short}.{self.target}.jsonl with goals and prompts: {self.short}:folder=FOLDER."
            ) from error
        try:
            # Checked before it is kept: a network's login page also comes with the status 200.
            read_artifact(content, self.url)
        except SafetyNeuronsError as error:
            raise SafetyNeuronsError(
                f"What was downloaded for the attack {self.short} was not kept: {error} Open the address in a browser "
                "to see what it sends."
            ) from error
        with atomic_path(self.kept) as temporary:
            temporary.write_bytes(content)


def read_artifact(content: bytes, source: str) -> dict[str, AttackedPrompt]:
    """The prompts of a JailbreakBench artifact by normalized goal, without the requests that its attack gave up on.

    Raises:
        SafetyNeuronsError: it is no artifact.
    """
    try:
        rows = [
            PromptRow(place, {"goal": entry["goal"], "prompt": entry["prompt"]})
            for place, entry in enumerate(json.loads(content)["jailbreaks"], start=1)
            if entry["prompt"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SafetyNeuronsError(f"{source} is no artifact of JailbreakBench ({error!r}).") from error
    return by_goal(rows, source, "item")
