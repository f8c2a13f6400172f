"""The options of engines, which commands share."""

import click
import pytest
from click.testing import CliRunner

from afmi.cli.options import engine_options
from afmi.engines import Local, Ray


def chosen(*arguments):
    seen = []

    @click.command()
    @engine_options
    def command(engine):
        seen.append(engine)

    result = CliRunner().invoke(command, arguments)
    return seen[0] if seen else result.output


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [
        ([], Local()),
        (["--workers", "3"], Local(workers=3)),
        (["--engine", "ray"], Ray()),
        (
            "--engine ray --workers 8 --address auto --cpus-per-worker 2 --gpus-per-worker 0.5",
            Ray(workers=8, address="auto", cpus=2, gpus=0.5),
        ),
    ],
)
def test_options_name_an_engine(arguments, engine):
    arguments = arguments.split() if isinstance(arguments, str) else arguments
    assert chosen(*arguments) == engine


@pytest.mark.parametrize("option", ["--address=auto", "--cpus-per-worker=2", "--gpus-per-worker=0"])
def test_options_of_ray_are_refused_by_other_engines(option):
    assert f"{option.partition('=')[0]} needs --engine ray" in chosen(option)
