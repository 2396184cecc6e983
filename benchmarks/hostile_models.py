"""Model folders, templates and GGUF files as a hostile or careless stranger could hand them over.

What runs here writes a marker file, and nothing else.
"""

# Templates are easier to read in one line.
# ruff: noqa: E501

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from builders.damage import PLACES, written

TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
_DOUBLE = "{% set n = namespace(x=START) %}{% for i in range(100) %}{% set n.x = STEP %}{% endfor %}{{ n.x }}"


def _doubling(start: str, step: str) -> str:
    return _DOUBLE.replace("START", start).replace("STEP", step)


# Templates that never end, or fill the memory.
ENDLESS_TEMPLATES: dict[str, str] = {
    "a long range": "{% for i in range(10**12) %}a{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% if j < 0 %}{% endif %}{% endfor %}{% endfor %}",
    "a loop that finds nothing": "{% set l = range(99999)|list %}{% for i in range(99999) if 'x' in l %}{% endfor %}",
    "a text times a number": "{{ 'a' * 10**10 }}",
    "a list times a number": "{% set x = 10**10 * [0] %}",
    "a large power": "{{ 2 ** (10**10) }}",
    "squared again and again": _doubling("3", "n.x * n.x"),
    "joined with itself": _doubling("'a'", "n.x ~ n.x"),
    "added to itself": _doubling("'a'", "n.x + n.x"),
    "formatted with itself": _doubling("'a'", "'{0}{0}'.format(n.x)"),
    "formatted by % with itself": _doubling("'a'", "'%s%s' % (n.x, n.x)"),
    "a list in itself": _doubling("[1]", "[n.x, n.x]"),
    "a dictionary in itself": _doubling("[1]", "dict(a=n.x, b=n.x)"),
    "a tuple in itself": _doubling("(1,)", "(n.x, n.x)"),
    "a block of itself": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set t %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = t %}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a block that shows itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "a wide column": "{{ 'a'|center(10**10) }}",
    "a wide method": "{{ 'a'.ljust(10**10) }}",
    "a wide format": "{{ '{:>10000000000}'.format(1) }}",
    "a width in an argument": "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "a wide %": "{{ '%10000000000d' % 1 }}",
    "a width for %": "{{ '%*d' % (10**10, 1) }}",
    "a deep indent": "{{ [[1]]|tojson(indent=10**10) }}",
    "bytes of a number": "{{ (1).to_bytes(10**10) }}",
    "replaced by itself": "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
    "joined by itself": "{% set a = 'a' * 1000000 %}{{ range(99999)|join(a) }}",
    "text in a loop": "{% for i in range(99999) %}" + "a" * 100_000 + "{% endfor %}",
    "parts in a loop": "{% set a = 'a' * 1000000 %}{% for i in range(99999) %}{% set x = a[::-1] %}{% endfor %}",
    "rounded to many digits": "{{ 1.5|round(10**10, 'ceil') }}",
    "filler text": "{{ lipsum(10**9) }}",
    "long source": TURNS + "{{ a }}" * 50_000,
    "deep source": TURNS + "{{" + "(" * 20_000 + "1" + ")" * 20_000 + "}}",
    "many loops in each other": "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
}


def escaping_templates(marker: Path) -> dict[str, str]:
    """Templates that try to leave the sandbox and write a file."""
    write = f"open('{marker}', 'w')"
    system = f"popen('touch {marker}')"
    return {
        "subclasses": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
        f"{{{{ c.__init__.__globals__['system']('touch {marker}') }}}}{{% endif %}}{{% endfor %}}",
        "globals of a class": f"{{{{ cycler.__init__.__globals__.os.{system} }}}}",
        "globals of a function": f"{{{{ raise_exception.__globals__.__builtins__.{write} }}}}",
        "the clock": f"{{{{ strftime_now.__globals__['__builtins__']['open']('{marker}', 'w') }}}}",
        "attr": f"{{{{ (namespace|attr('__init__')|attr('__globals__'))['__builtins__'].{write} }}}}",
        "map": "{{ ['']|map(attribute='__class__.__base__.__subclasses__')|first()() }}",
        "format": "{{ '{0.__class__.__base__.__subclasses__}'.format('') }}",
        "format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
        "self": f"{{{{ self.__init__.__globals__.__builtins__.{write} }}}}",
        "namespace": "{% set n = namespace(__class__=1) %}{{ n.__class__ }}",
        "macro": f"{{% macro f() %}}{{% endmacro %}}{{{{ f._func.__globals__.__builtins__.{write} }}}}",
        "lipsum": f"{{{{ lipsum.__globals__.os.{system} }}}}",
        "include": "{% include '/etc/hostname' %}",
        "import": f"{{% import 'os' as os %}}{{{{ os.{system} }}}}",
    }


Damage = Callable[[Path], None]


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: written(change(path.read_bytes()))(path)


def _flipped(content: bytes) -> bytes:
    changed, drawn = bytearray(content), random.Random(0)
    for _ in range(20):
        changed[drawn.randrange(len(changed))] ^= 1 << drawn.randrange(8)
    return bytes(changed)


# What can be done to any file.
DAMAGES: dict[str, Damage] = {
    "empty": _bytes(lambda content: b""),
    "cut in half": _bytes(lambda content: content[: len(content) // 2]),
    "last byte missing": _bytes(lambda content: content[:-1]),
    "random bytes": _bytes(lambda content: random.Random(0).randbytes(len(content))),
    "zeros": _bytes(lambda content: bytes(len(content))),
    "flipped bits": _bytes(_flipped),
    "null": _bytes(lambda content: b"null"),
    "list": _bytes(lambda content: b"[]"),
    "object": _bytes(lambda content: b"{}"),
    "number": _bytes(lambda content: b"1e999"),
    "text": _bytes(lambda content: b'"text"'),
    "deep": _bytes(lambda content: b"[" * 200_000 + b"]" * 200_000),
    "deep object": _bytes(lambda content: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not UTF-8": _bytes(lambda content: content[:20] + b"\xff\xfe\x80" + content[20:]),
    "NUL": _bytes(lambda content: content[:1] + b"\0" + content[1:]),
    "more after its end": _bytes(lambda content: content + b"{}"),
    "a page": _bytes(lambda content: b"<!DOCTYPE html><html>not found</html>"),
    **{place.name: place.to for place in PLACES},
}


def set_value(path: Path, key: str, value: Any) -> None:
    """Set one value of a JSON object; dots in the key lead into objects in it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    *parents, last = key.split(".")
    inside = content
    for parent in parents:
        inside = inside.setdefault(parent, {})
    inside[last] = value
    written(json.dumps(content).encode())(path)


# Values for the numbers of a config.
NUMBERS: tuple[Any, ...] = (
    *(10**9, 10**18, 10**400, -1, -(10**9), 0, 1.5, 1e300, "3", "x", None, [], [3], {}, True),
    *(float("nan"), float("inf")),
)


def weights_that(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = change({name: value.clone() for name, value in load_file(path).items()})
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def with_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of a safetensors file and nothing else."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    text = (json.dumps(header) if changed is None else changed).encode()
    written(struct.pack("<Q", len(text)) + text + content[8 + length :])(path)


def write_code(folder: Path, marker: Path, name: str = "hostile.py") -> Path:
    """Code that would write the marker if somebody imported it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class HostileConfig(LlamaConfig):\n    pass\n"
        "class HostileModel(LlamaForCausalLM):\n    config_class = HostileConfig\n"
        "class HostileTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        "def generate(*args, **options):\n    pass\n",
        encoding="utf-8",
    )
    return path


class _Writes:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def write_pickle(path: Path, marker: Path) -> None:
    """A pickle that writes the marker when it is read."""
    torch.save({"weight": _Writes(marker)}, path)
