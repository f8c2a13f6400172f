"""``afmi explain``: say which parts of pictures made a network say what it said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from afmi.cli.group import debug_option
from afmi.cli.options import (
    TARGET,
    asked_targets,
    batch_size_option,
    json_option,
    layer_option,
    model_options,
    out_option,
    quiet_option,
    reference_option,
    versus_option,
    writable_folder,
)
from afmi.cli.runs import stoppable
from afmi.cli.terminal import Progress, echo
from afmi.errors import ImageError, UsageError
from afmi.files import as_json

if TYPE_CHECKING:
    from afmi.batching import Unexplained
    from afmi.explanation import Explanation
    from afmi.methods import Method
    from afmi.metrics import FMIPrototypes
    from afmi.network.classifier import Classifier

__all__ = ["explain"]

SOME_FAILED = 1
"""Exit code: some pictures could not be explained; the others were."""


@click.command(short_help="Explain pictures.")
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True)
@model_options
@layer_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar=TARGET,
    help="Class to explain, or another target, such as output:index=3; may be repeated.  "
    "[default: the predicted class]",
)
@versus_option
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="K",
    help="Explain the K most probable classes of each picture.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=["A-FMI"],
    metavar="NAME",
    help="Explanation method (`afmi methods` lists them); may be repeated.",
)
@reference_option(
    "What a picture is compared with: black, white, random, blurred, mean, several joined by "
    "+ (black+white: averaged), or an image file.  [default: the method's; for A-FMI black]",
)
@click.option(
    "--prototypes",
    metavar="FILE|URL",
    help="A-FMI: what afmi.fmi_prototypes made of the same network; for each picture it is then "
    "said for which class its feature map importance is usual.",
)
@out_option("afmi-out", "Folder for the pictures and their records.")
@batch_size_option
@json_option(
    "Print one JSON object a line: a record for each explanation, an error for each bad file."
)
@quiet_option("Print errors only (and what --json prints).")
@debug_option
@click.pass_context
def explain(
    ctx: click.Context,
    images: tuple[str, ...],
    network: dict[str, Any],
    layer: str | None,
    targets: tuple[str, ...],
    versus: str | None,
    top_k: int | None,
    methods: tuple[str, ...],
    reference: str | None,
    prototypes: str | None,
    out: Path,
    batch_size: int,
    json_wanted: bool,
    quiet: bool,
) -> None:
    """Show which parts of each picture made the network say what it said.

    IMAGE is a file, a folder or a quoted glob. For each explanation a picture and a JSON record go
    to the folder of --out, and one line tells the class and its probability (or what else is
    explained, and its score), the method and its layer, the residual of local faithfulness (how far
    the map is from summing to the change of the score; 0 is exact) and the picture's file.

    A target that is no class is named with its parameters: output:index=3 (that number of what the
    network returns), difference:of=collie (collie rather than any other class), region:of=cat
    (where a segmentation has a cat), box:of=cat (the most certain cat of a detector). A label
    that reads like a target is a label.

    \b
    Examples:
      afmi explain dog.jpg
      afmi explain dog.jpg --model resnet50 --target collie --target "tennis ball"
      afmi explain dog.jpg --model resnet50 --target malamute --versus "Eskimo dog"
      afmi explain photos/ 'more/**/*.png' --top-k 3 --method a-fmi --method grad-cam
      afmi explain dog.jpg --method a-fmi:averaged=false --reference 'random(samples=2)'
      afmi explain x.png --model nets.py:build --weights net.pth --crop 64 --labels names.txt
      afmi explain house.png --model nets.py:price --output value
      afmi explain photos/ --json --quiet > records.jsonl

    \b
    Exit codes: 0 all explained, 1 some pictures failed, 2 nothing to be done with these options,
    130 stopped by Ctrl-C; what was finished is kept.
    """
    for option, given in (("--target", targets), ("--versus", versus)):
        if given and top_k is not None:
            raise click.UsageError(f"{option} and --top-k go one at a time", ctx)
    # What needs no network is checked before one is loaded, which takes seconds or a download.
    chosen = _chosen_methods(methods, layer, reference)
    known = None if prototypes is None else _prototypes(chosen, prototypes)
    from afmi.models import load_model
    from afmi.specs import label_of

    paths, nothing = _listed(images)
    classifier = load_model(**network, layer=layer)
    asked = asked_targets(classifier, targets, versus)
    run = _Run(
        classifier=classifier,
        paths=paths,
        nothing=nothing,
        methods=list({label_of(m): m for m in (c.of(classifier) for c in chosen)}.values()),
        options={"classes": asked, "top_k": top_k, "batch_size": batch_size},
        prototypes=known,
        out=writable_folder(out),
        json_wanted=json_wanted,
        quiet=quiet,
    )
    run.explain_all(ctx)
    if run.failed:
        ctx.exit(SOME_FAILED)


def _listed(patterns: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Return the files that arguments name, and why others name none.

    Raises:
        ImageError: none of the arguments names a file.
    """
    from afmi.pictures.finding import find_images

    readable, nothing = [], {}
    for pattern in patterns:
        try:
            find_images(pattern)
            readable.append(pattern)
        except ImageError as error:
            nothing[pattern] = str(error)
    if not readable:
        raise ImageError("; ".join(nothing.values()))
    return find_images(readable), nothing


@dataclass(frozen=True)
class _Chosen:
    """A method as the user wrote it, with the reference that was given for all of them."""

    spec: str
    cls: type[Method]
    given: dict[str, Any]

    def of(self, classifier: Classifier) -> Method:
        from afmi.methods import Method
        from afmi.specs import read

        cls, parameters = read(self.spec, Method, model=classifier)
        make: Any = cls  # one of the catalogue, none of which is abstract
        return make(classifier, **(self.given | parameters))


def _chosen_methods(
    specs: Sequence[str], layer: str | None, reference: str | None
) -> list[_Chosen]:
    """Return the methods, each with the reference where it takes one.

    Raises:
        UsageError: when no method is called so, or none of them has a hyperparameter given.
    """
    from afmi.methods import CATALOGUE, Method
    from afmi.pictures.references import Reference
    from afmi.specs import parse, read

    classes = {spec: read(spec, Method, model=None)[0] for spec in specs}
    for parameter, value in (("layer", layer), ("reference", reference)):
        if value is not None and not any(parameter in _parameters(c) for c in classes.values()):
            able = " or ".join(c.name for c in CATALOGUE.values() if parameter in _parameters(c))
            names = dict.fromkeys(cls.name for cls in classes.values())
            raise UsageError(
                f"--{parameter} has no effect on {' and '.join(names)}; "
                f"leave it out, or choose --method {able}"
            )
    # The layer is no hyperparameter here: the classifier keeps it, and every method asks there.
    given = {} if reference is None else {"reference": parse(reference, Reference)}
    return [
        _Chosen(spec, cls, given if "reference" in _parameters(cls) else {})
        for spec, cls in classes.items()
    ]


def _parameters(method: type[Method]) -> set[str]:
    return {field.name for field in fields(method)}


def _prototypes(chosen: Sequence[_Chosen], file: str) -> FMIPrototypes:
    """Return the prototypes in a file, where one of the methods compares with them.

    Raises:
        UsageError: when none does, or there are none in the file.
    """
    from afmi.methods import AFMI
    from afmi.metrics import FMIPrototypes

    if not any(issubclass(one.cls, AFMI) for one in chosen):
        names = dict.fromkeys(one.cls.name for one in chosen)
        raise UsageError(
            f"--prototypes has no effect on {' and '.join(names)}; leave it out, or choose "
            f"--method {AFMI.name}"
        )
    return FMIPrototypes.load(file)


@dataclass
class _Run:
    """Explain all pictures, and count what was finished and what failed."""

    classifier: Classifier
    paths: list[Path]
    nothing: dict[str, str]
    methods: list[Method]
    options: dict[str, Any]
    prototypes: FMIPrototypes | None
    out: Path
    json_wanted: bool
    quiet: bool
    finished: int = 0
    failed: int = 0

    def explain_all(self, ctx: click.Context) -> None:
        """Do it, and print how it went."""
        import torch

        with stoppable(ctx, self._kept, quiet=self.quiet, total=len(self.paths)) as progress:
            try:
                for pattern, reason in self.nothing.items():
                    self._refuse(pattern, reason, progress)
                for path, results in self._results():
                    self._report(path, results, progress)
                    progress.step(path.name)
            except (MemoryError, torch.cuda.OutOfMemoryError) as error:
                raise UsageError("out of memory; try a smaller --batch-size") from error
        if len(self.paths) + len(self.nothing) > 1 and not (self.quiet or self.json_wanted):
            count = len(self.paths) + len(self.nothing)
            failed = f"; {self.failed} of {count} failed" if self.failed else ""
            echo(f"{self._kept()}{failed}", err=True)

    def _kept(self) -> str:
        plural = "" if self.finished == 1 else "s"
        return f"{self.finished} explanation{plural} saved in {self.out}"

    def _results(self) -> Iterator[tuple[Path, tuple[list[Explanation] | Unexplained, ...]]]:
        """Yield each path with the results of all methods, which work in step."""
        from afmi.api import explain_files
        from afmi.methods import AFMI

        streams = [
            explain_files(
                *(self.classifier, self.paths),
                method=method,
                prototypes=self.prototypes if isinstance(method, AFMI) else None,
                **self.options,
            )
            for method in self.methods
        ]
        yield from zip(self.paths, zip(*streams, strict=True), strict=True)

    def _report(
        self,
        path: Path,
        results: tuple[list[Explanation] | Unexplained, ...],
        progress: Progress,
    ) -> None:
        from afmi.batching import Unexplained

        reasons = [result.reason for result in results if isinstance(result, Unexplained)]
        if reasons:
            self._refuse(str(path), reasons[0], progress)
        for result in results:
            if not isinstance(result, Unexplained):
                for explanation in result:
                    self._save(explanation, progress)

    def _refuse(self, source: str, reason: str, progress: Progress) -> None:
        self.failed += 1
        progress.line(f"afmi: {reason}", err=True)
        if self.json_wanted:
            progress.line(as_json({"source": source, "error": reason}))

    def _save(self, explanation: Explanation, progress: Progress) -> None:
        files = explanation.save(self.out)
        self.finished += 1
        if self.json_wanted:
            record = {**explanation.to_dict(), "files": {k: str(v) for k, v in files.items()}}
            progress.line(as_json(record))
        elif not self.quiet:
            progress.line(_line(explanation, files))


def _line(explanation: Explanation, files: dict[str, Path]) -> str:
    label = explanation.answer
    if explanation.prediction is not None:
        label += f" (predicted: {explanation.prediction})"
    method = explanation.method + (f" at {explanation.layer}" if explanation.layer else "")
    parts = [str(explanation.source), label, method]
    if explanation.residual is not None:
        parts.append(f"residual {round(explanation.residual, 3) + 0:+.1%}")
    parts += [text for text in (explanation.hidden, explanation.usual) if text is not None]
    return "  ".join([*parts, f"→ {files['figure']}"])
