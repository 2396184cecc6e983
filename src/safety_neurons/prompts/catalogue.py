"""The prompt sets that have a name: those that come with the library, and public ones at a pinned revision."""

from dataclasses import dataclass, replace

GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class NamedSet:
    """A prompt set that can be asked for by name.

    A public set's file is at `home`/`revision`/`path`; all three are empty for a bundled set. `keep` are columns
    and values: of the first of these columns that the file has, the rows with the value belong to the set. A
    local copy may also be called by the name of the set's `family`. `substitute` is the bundled set to use where
    the public one cannot be had.
    """

    name: str
    description: str
    licence: str
    home: str = ""
    revision: str = ""
    path: str = ""
    column: str = "prompt"
    category: str = "category"
    keep: tuple[tuple[str, str], ...] = ()
    family: str = ""
    substitute: str = ""

    @property
    def url(self) -> str:
        """The address of a public set's file; empty for a bundled set."""
        return f"{self.home}/{self.revision}/{self.path}" if self.home else ""

    @property
    def file(self) -> str:
        """The name of a public set's file."""
        return self.path.rsplit("/", 1)[-1]


BUNDLED = (
    NamedSet("harmful", "320 harmful requests in 16 categories", "Apache-2.0"),
    NamedSet("benign", "320 harmless twins of the harmful requests, alike in form and length", "Apache-2.0"),
    NamedSet("borderline", "120 harmless requests that sound harmful, to measure over-refusal", "Apache-2.0"),
    NamedSet("contrast", "120 harmful twins of the borderline requests, alike in form and length", "Apache-2.0"),
)

_JAILBREAKBENCH = NamedSet(
    "jailbreakbench",
    "JailbreakBench: 100 harmful behaviours in 10 categories (Chao et al. 2024)",
    "MIT",
    home=f"{HUB}/JailbreakBench/JBB-Behaviors/resolve",
    revision="886acc352a31533ffbcf4ef22c744658688086fc",
    path="data/harmful-behaviors.csv",
    column="Goal",
    category="Category",
    substitute="harmful",
)
_XSTEST = NamedSet(
    "xstest-safe",
    "XSTest: 250 safe requests that sound unsafe (Röttger et al. 2024)",
    "CC-BY-4.0",
    home=f"{GITHUB}/paul-rottger/xstest",
    revision="475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5",
    path="xstest_prompts.csv",
    category="type",
    keep=(("label", "safe"), ("safe", "true")),
    family="xstest",
    substitute="borderline",
)

PUBLIC = (
    NamedSet(
        "advbench",
        "AdvBench: 520 harmful instructions (Zou et al. 2023)",
        "MIT",
        home=f"{GITHUB}/llm-attacks/llm-attacks",
        revision="098262edf85f807224e70ecd87b9d83716bf6b73",
        path="data/advbench/harmful_behaviors.csv",
        column="goal",
        substitute="harmful",
    ),
    _JAILBREAKBENCH,
    replace(
        _JAILBREAKBENCH,
        name="jailbreakbench-benign",
        description="JailbreakBench: the 100 benign twins of its harmful behaviours (Chao et al. 2024)",
        path="data/benign-behaviors.csv",
        substitute="benign",
    ),
    NamedSet(
        "harmbench",
        "HarmBench: the 200 standard behaviours, without copyright and context (Mazeika et al. 2024)",
        "MIT",
        home=f"{GITHUB}/centerforaisafety/HarmBench",
        revision="c0423b952435fcc8467108d8f25962dbae5b7de2",
        path="data/behavior_datasets/harmbench_behaviors_text_all.csv",
        column="Behavior",
        category="SemanticCategory",
        keep=(("FunctionalCategory", "standard"),),
        substitute="harmful",
    ),
    NamedSet(
        "strongreject",
        "StrongREJECT: 313 forbidden prompts in 6 categories (Souly et al. 2024)",
        "MIT",
        home=f"{GITHUB}/alexandrasouly/strongreject",
        revision="f7cad6c17e624e21d8df2278e918ae1dddb4cb56",
        path="strongreject_dataset/strongreject_dataset.csv",
        column="forbidden_prompt",
        substitute="harmful",
    ),
    NamedSet(
        "malicious-instruct",
        "MaliciousInstruct: 100 malicious questions (Huang et al. 2023)",
        "not stated by its authors",
        home=f"{GITHUB}/Princeton-SysML/Jailbreak_LLM",
        revision="1e490531c0ef4bc13430178bf1fbc8f813e34b1a",
        path="data/MaliciousInstruct.txt",
        substitute="harmful",
    ),
    _XSTEST,
    replace(
        _XSTEST,
        name="xstest-unsafe",
        description="XSTest: the 200 unsafe counterparts of the safe requests (Röttger et al. 2024)",
        keep=(("label", "unsafe"), ("safe", "false")),
        substitute="harmful",
    ),
    NamedSet(
        "alpaca",
        "Alpaca: 52 thousand everyday instructions (Taori et al. 2023)",
        "CC-BY-NC-4.0",
        home=f"{GITHUB}/tatsu-lab/stanford_alpaca",
        revision="761dc5bfbdeeffa89b8bff5d038781a4055f796a",
        path="alpaca_data.json",
        column="instruction",
        substitute="benign",
    ),
    NamedSet(
        "alpaca-eval",
        "AlpacaEval: 805 instructions from five test sets (Li et al. 2023)",
        "CC-BY-NC-4.0",
        home=f"{HUB}/tatsu-lab/alpaca_eval/resolve",
        revision="2edc6fad8be6b14ea7230aabfd08188da6b8b814",
        path="alpaca_eval.json",
        column="instruction",
        category="dataset",
        substitute="benign",
    ),
    NamedSet(
        "dolly",
        "Dolly: those of 15 thousand instructions that come without a text to work on (Conover et al. 2023)",
        "CC-BY-SA-3.0",
        home=f"{HUB}/databricks/databricks-dolly-15k/resolve",
        revision="bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a",
        path="databricks-dolly-15k.jsonl",
        column="instruction",
        keep=(("context", ""),),
        substitute="benign",
    ),
)


def named_sets() -> tuple[NamedSet, ...]:
    """All sets that have a name, the bundled ones first."""
    return BUNDLED + PUBLIC


def named_set(name: str) -> NamedSet | None:
    """The set of this name, if there is one; nothing is read or downloaded."""
    return next((row for row in named_sets() if row.name == name), None)
