"""The API reference, in the order in which one would read it, from the docstrings."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import cqs
import cqs.autograd
import cqs.backend.cuda
import cqs.backend.device
import cqs.backward
import cqs.errors
import cqs.huggingface
import cqs.jax
import cqs.jobs
import cqs.kernels.cudnn
import cqs.kernels.gemm
import cqs.maps
import cqs.plot
import cqs.quorum
import cqs.schedule
import cqs.scores
import cqs.testing
import cqs.trace
import cqs.types
import cqs.verify
from building.numpydoc import markdown_of, summary_of

__all__ = ["CHAPTERS", "Chapter", "anchors", "chapter_page", "overview_page"]


@dataclass(frozen=True, slots=True)
class Chapter:
    """A page of the reference: modules whose own text is shown, each with the names that follow it."""

    slug: str
    title: str
    parts: tuple[tuple[ModuleType | None, tuple[str, ...]], ...]


CHAPTERS = (
    Chapter(
        "attention",
        "The calls",
        (
            (None, ("cqs.attention", "cqs.plan", "cqs.work", "cqs.default_workers")),
            (cqs.backward, ("cqs.attention_backward", "cqs.backward.sink_logits_backward")),
            (cqs.autograd, ("cqs.autograd.attention",)),
            (cqs.jax, ("cqs.jax.attention",)),
            (cqs.huggingface, ("cqs.huggingface.register",)),
            (cqs.maps, ("cqs.attention_map",)),
        ),
    ),
    Chapter(
        "masks-and-scores",
        "Masks and scores",
        (
            (
                cqs.masks,
                tuple(
                    f"cqs.masks.{name}"
                    for name in (
                        "Mask",
                        "Coverage",
                        "NoMask",
                        "Causal",
                        "SlidingWindow",
                        "PrefixLM",
                        "Sinks",
                        "Documents",
                        "KeyLengths",
                        "Dense",
                        "Predicate",
                        "And",
                        "Or",
                        "Not",
                    )
                ),
            ),
            (cqs.scores, ("cqs.scores.ALiBi",)),
        ),
    ),
    Chapter(
        "quorums",
        "Covers and quorums",
        (
            (cqs.quorum, ("cqs.difference_cover", "cqs.DifferenceCover", "cqs.CyclicQuorumSet")),
            (
                None,
                tuple(
                    f"cqs.quorum.{name}"
                    for name in cqs.quorum.__all__
                    if name not in ("CyclicQuorumSet", "DifferenceCover", "difference_cover")
                ),
            ),
        ),
    ),
    Chapter(
        "plans",
        "From a problem to a plan",
        (
            (
                None,
                (
                    "cqs.AttentionProblem",
                    "cqs.Scheduler",
                    "cqs.Plan",
                    "cqs.Task",
                    "cqs.Strip",
                    "cqs.Tile",
                    "cqs.divide",
                ),
            ),
            (
                cqs.schedule,
                tuple(
                    f"cqs.schedule.{n}"
                    for n in ("Group", "Grain", "Setting", "Footprint", "SlotBytes", "Traffic", "Rates")
                ),
            ),
        ),
    ),
    Chapter(
        "running",
        "From a plan to an output",
        (
            (None, ("cqs.ArraySource", "cqs.Worker", "cqs.TaskResult", "cqs.Partial", "cqs.merge", "cqs.Tiler")),
            (cqs.kernels, tuple(f"cqs.kernels.{n}" for n in ("Attend", "KeyChunk", "Region", "attend_per_head"))),
            (None, tuple(f"cqs.kernels.{n}" for n in ("Kernel", "Request", "choose_kernel"))),
            (cqs.engines, ("cqs.engines.Engine", "cqs.engines.LocalEngine", "cqs.engines.ExecutorEngine")),
            (cqs.backward, tuple(f"cqs.backward.{n}" for n in ("Gradients", "GradientsWithBias", "BiasShape"))),
            (None, tuple(f"cqs.backward.{n}" for n in ("GradientWorker", "GradientAdder"))),
            (cqs.jobs, tuple(f"cqs.jobs.{name}" for name in ("JobDirectory", "Job", "ResumingEngine"))),
        ),
    ),
    Chapter(
        "devices",
        "Devices and GPUs",
        (
            (
                cqs.backend.device,
                tuple(
                    f"cqs.backend.{n}" for n in ("Device", "Session", "TimedSession", "Slot", "Download", "slot_bytes")
                ),
            ),
            (None, ("cqs.backend.HostDevice",)),
            (cqs.backend.cuda, ("cqs.backend.CudaDevice",)),
            (None, ("cqs.engines.DeviceEngine",)),
            (cqs.kernels.cudnn, ("cqs.kernels.cudnn.attend", "cqs.kernels.cudnn_missing")),
            (cqs.kernels.gemm, ("cqs.kernels.gemm.attend",)),
        ),
    ),
    Chapter(
        "watching",
        "Checking, watching, drawing",
        (
            (
                cqs.testing,
                ("cqs.testing.assert_exact", "cqs.testing.assert_exact_gradients", "cqs.testing.reference_attention"),
            ),
            (cqs.verify, ("cqs.verify.verify_rows", "cqs.verify.Verification")),
            (cqs.events, tuple(f"cqs.events.{name}" for name in cqs.events.__all__ if name not in ("Emit", "silent"))),
            (cqs.trace, tuple(f"cqs.trace.{name}" for name in cqs.trace.__all__)),
            (cqs.plot, tuple(f"cqs.plot.{name}" for name in cqs.plot.__all__)),
        ),
    ),
    Chapter("errors", "Errors", ((cqs.errors, ("cqs.CQSError",)),)),
)


def anchors() -> dict[str, str]:
    """Return the page and anchor of every name: `cqs.attention` is at `api/attention.md#cqs.attention`."""
    found = {}
    for chapter in CHAPTERS:
        for module, names in chapter.parts:
            for name in (*([module.__name__] if module else ()), *names):
                found[name] = f"api/{chapter.slug}.md#{name}"
    for name in _errors():
        found[name] = f"api/errors.md#{name}"
    return found


def overview_page() -> str:
    """Return the first page: what the letters mean, and what is where."""
    rows = []
    for chapter in CHAPTERS:
        names = [name for _, own in chapter.parts for name in own]
        links = ", ".join(f"[`{name.rpartition('.')[2]}`]({chapter.slug}.md#{name})" for name in names)
        rows.append(f"| [{chapter.title}]({chapter.slug}.md) | {links} |")
    table = "\n".join(["| chapter | names |", "| --- | --- |", *rows])
    legend = markdown_of(cqs.types.__doc__)
    text = (
        "In reading order: a few calls do everything, and the other chapters say what they are made of. Each entry is"
        " the docstring, which `help(cqs.attention)` shows as well."
    )
    return f"# Reference\n\n{text}\n\n{table}\n\n## The letters\n\n{legend}\n"


def chapter_page(chapter: Chapter) -> str:
    """Return a page of the reference."""
    parts = [f"# {chapter.title}"]
    for module, names in chapter.parts:
        if module is not None:
            parts += [f"## `{module.__name__}` {{#{module.__name__}}}", markdown_of(module.__doc__)]
        for name in names:
            parts += _entry(name)
    if chapter.slug == "errors":
        for name in _errors():
            parts += _entry(name)
    return "\n\n".join(parts) + "\n"


def _errors() -> list[str]:
    return [f"cqs.errors.{name}" for name in cqs.errors.__all__ if name.endswith("Error") and name != "CQSError"]


def _value(name: str) -> Any:
    value: Any = cqs
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def _entry(name: str) -> Iterator[str]:
    """Yield heading, signature, text and members of a name."""
    value = _value(name)
    yield f"### `{name}` {{#{name}}}"
    if signature := _signature(name.rpartition(".")[2], value):
        yield f"```python\n{signature}\n```"
    yield markdown_of(value.__doc__)
    if inspect.isclass(value):
        members = list(_members(value))
        if members:
            yield "**Members**\n\n" + "\n".join(members)


def _signature(name: str, value: Any) -> str | None:
    """Return names and defaults; types are in the text below."""
    if inspect.isclass(value) and (issubclass(value, Exception) or getattr(value, "_is_protocol", False)):
        return None
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    kept = []
    for p in signature.parameters.values():
        if p.kind is p.VAR_KEYWORD or p.name == "self":
            continue
        kept.append((p.kind is p.KEYWORD_ONLY, p.name if p.default is p.empty else f"{p.name}={_default(p.default)}"))
    words = [text for only, text in kept if not only]
    words += ["*", *(text for only, text in kept if only)] if any(only for only, _ in kept) else []
    line = f"{name}({', '.join(words)})"
    if len(line) <= 90:
        return line
    return f"{name}(\n    " + ",\n    ".join(words) + ",\n)"


def _default(value: Any) -> str:
    """Return how a default is written: modules and functions by their names, what a factory makes as dots."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__name__}"
    return "..." if repr(value) == "<factory>" else repr(value)


def _members(cls: type) -> Iterator[str]:
    """Yield a line for each public method and property that a class defines."""
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"- **`{name}`**: {summary_of(value.__doc__)}"
        elif isinstance(value, FunctionType | classmethod | staticmethod):
            function = value if isinstance(value, FunctionType) else value.__func__
            taken = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
            yield f"- **`{name}({', '.join(taken)})`**: {summary_of(function.__doc__)}"
