"""How models are evaluated."""

from pathlib import Path

from pydantic import Field

from safety_neurons.core.config import Config


class EvaluationConfig(Config):
    """Attacks against defenses, judged."""

    attacks: tuple[str, ...] = Field(("direct", "prefix-injection", "refusal-suppression", "prefill"), min_length=1)
    """Attacks on the harmful test prompts."""
    defenses: tuple[str, ...] = Field(("none", "safetuning"), min_length=1)
    """Defenses that answer them, and the safe test prompts."""
    judge: str = "refusal"
    """Judge of the answers that a run makes on the way: a set of rules, without a model."""
    judges: tuple[str, ...] | None = Field(None, min_length=1)
    """Judges of the evaluation. Default: the run's judge."""
    on: str | None = None
    """HARMFUL:SAFE[:SAFE...], prompt sets to evaluate on. Default: the test split of the run's own."""
    prompts: int = Field(40, ge=1)
    """Maximum number of test prompts of each set."""
    answer_tokens: int = Field(24, ge=1)
    """Maximum length of an answer, in tokens."""
    judge_errors: Path | None = None
    """A file of `judge check`: rates are also given corrected for the judge's errors. Default: the error rates measured
    on XSTest, where available."""
    overhead: int = Field(0, ge=0)
    """Measure each defense's latency relative to no defense, over N rounds. 0: not measured."""
    utility: bool = False
    """Measure the answers to ordinary prompts under each defense, and how far the model moved (KL, perplexity)."""
    tasks: tuple[str, ...] = ()
    """Tasks of the LM Evaluation Harness to run under each defense that changes the model."""
    gsm8k: Path | None = None
    """A file with problems of GSM8K (`question`, `answer`) to solve under each defense: exact match, and the difference
    from no defense."""
    task_limit: int | None = Field(None, ge=1)
    """Maximum number of documents per task, and of problems of GSM8K."""
    task_folder: Path | None = None
    """A folder with tasks of your own."""
    preference_judge: str | None = None
    """Model that compares a defense's answers to open questions with the base model's: a preset, hub id or folder, or
    its name at preference_endpoint."""
    preference_endpoint: str | None = None
    """OpenAI-compatible server with that model."""
    questions: Path | None = None
    """Your own questions, a .jsonl file with `turns`. Default: 24 bundled ones."""
