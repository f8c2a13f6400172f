"""What can be chosen for a network is what works on it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

import afmi.app.choices as choices_module
from afmi.app.choices import AT_ONCE, Choices, MethodChoice, cost_in_words
from afmi.errors import ModelError, UsageError
from afmi.methods import AFMI, CATALOGUE
from afmi.network.classifier import Classifier


def test_methods_that_work_are_listed_and_others_refused(choices: Choices) -> None:
    assert next(iter(choices.methods)) == "A-FMI"
    assert list(choices.methods)[-1] == "Random"
    every = {method.name for method in CATALOGUE.values()} | {"A-FMI (averaged=false)"}
    assert set(choices.methods) | set(choices.refused) == every
    # Its head is not global average pooling, and nobody trained masks for it.
    assert {"CAM", "Masking model"} <= set(choices.refused)
    assert "CAM" in choices.without
    assert {"RISE", "Grad-CAM", "Integrated Gradients"} <= set(choices.methods)


def test_methods_are_tried_once_and_not_before_they_are_asked_for(
    model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def trial(*_: Any) -> tuple[dict[str, MethodChoice], dict[str, str]]:
        tried.append(threading.get_ident())
        time.sleep(0.05)
        return {"A-FMI": MethodChoice("A-FMI", AFMI(model), 1.0)}, {"CAM": "a reason"}

    monkeypatch.setattr(choices_module, "_methods", trial)
    choices = Choices.of(model)
    assert tried == []
    visitors = [threading.Thread(target=lambda: choices.methods) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(tried) == 1
    assert (choices.first.label, choices.refused) == ("A-FMI", {"CAM": "a reason"})


def test_what_a_method_takes(choices: Choices) -> None:
    afmi, rise, gradient = (choices.methods[name] for name in ("A-FMI", "RISE", "Gradient"))
    assert afmi.takes_reference and afmi.takes_layer
    assert afmi.about_reference == "Its own: a black picture."
    assert not rise.takes_layer
    assert gradient.about_reference == "The method compares with nothing."


def test_classes_of_one_name_are_told_apart(choices: Choices) -> None:
    names = [name for name, _ in choices.classes]
    assert names == ["tabby cat", "tiger cat", "crane (2)", "crane (3)", "<b>owl</b>"]


def test_layers_are_one_a_size_besides_the_chosen_one(choices: Choices) -> None:
    assert [layer.layer for layer in choices.layers] == ["2"]
    assert choices.layers_in_words == [("2 (4 maps of 7 × 7)", "2")]


def test_layers_of_another_shape_than_the_picture_are_left_out() -> None:
    class Tokens(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).reshape(len(x), 1, 6, -1)

    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Tokens(), nn.Flatten())
    choices = Choices.of(Classifier(nn.Sequential(network, nn.Linear(216, 2)), crop=8))
    assert all("Tokens" not in layer.module for layer in choices.layers)


def test_cost_is_said_in_words(model: Classifier) -> None:
    assert cost_in_words(AT_ONCE) == "at once"
    slow = MethodChoice("RISE", AFMI(model), 240.0)
    assert slow.words == "RISE – about 4 min"
    assert slow.button == "Explain (about 4 min)"


def test_values_are_no_classes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    choices = Choices.of(Classifier(network, output="value", crop=8))
    assert not choices.has_classes
    assert choices.labels == ("output 0", "output 1")


def test_what_the_page_has_no_use_for_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a Classifier"):
        Choices.of(nn.Flatten())
    with pytest.raises(UsageError, match="got one of signals or volumes"):
        Choices.of(Classifier(nn.Conv3d(1, 2, 3), mean=[0.5], std=[0.5]))
    with pytest.raises(ModelError):
        Choices.of(Classifier(nn.Conv2d(3, 4, 3), crop=8, output="logits"))
