"""What we read of the bodies that an OpenAI-compatible server answers with."""

from pydantic import BaseModel, Field


class Message(BaseModel):
    """What the model wrote; None where it did not get beyond its reasoning."""

    content: str | None = None
    # Two names for what a model thought before.
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(BaseModel):
    """One answer."""

    message: Message
    finish_reason: str | None = None


class Tokens(BaseModel):
    """How many there were."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Reply(BaseModel):
    """A chat completion."""

    choices: list[Choice] = Field(min_length=1)
    usage: Tokens | None = None

    @property
    def text(self) -> str:
        return self.choices[0].message.content or ""

    @property
    def written(self) -> str:
        """The text and what the model thought before."""
        message = self.choices[0].message
        return (message.reasoning_content or message.reasoning or "") + self.text

    @property
    def cut_off(self) -> bool:
        return self.choices[0].finish_reason == "length"


class ServedModel(BaseModel):
    """A model that can be asked."""

    id: str


class ServedModels(BaseModel):
    """The list of them."""

    data: list[ServedModel]
