"""Injected faults: every one is found, and placed where it was put."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...tools import campaign
from ...tools.campaign import Outcome


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Every trial of the campaign that the guide tells of."""
    found = campaign.campaign(seed=0)
    print(f"\n{campaign.table(found)}")
    return found


def failing(outcomes: list[Outcome], judged: str) -> list[str]:
    """Return the trials that a judgement is not true of, as text."""
    return [f"{one.trial}: {one.bare}: {one.detail}" for one in outcomes if not one.blind and not getattr(one, judged)]


def test_the_campaign_breaks_three_models_in_every_way(outcomes: list[Outcome]) -> None:
    """At least 300 faults, of each kind on each model, half of them put in by hooks; few change nothing to be seen."""
    assert len(outcomes) >= 300
    kinds = {(one.trial.model, one.trial.fault) for one in outcomes}
    assert len(kinds) == 3 * (len(campaign.OUTPUTS) + 1)
    by_hook = sum(one.trial.by_hook for one in outcomes)
    assert 0.4 < by_hook / len(outcomes) < 0.6
    assert sum(one.blind for one in outcomes) < 0.05 * len(outcomes)
    assert sum(one.bare is not None for one in outcomes) > 0.8 * len(outcomes)


def test_readme_has_the_table_that_is_printed(outcomes: list[Outcome]) -> None:
    """Line by line; that of the guide is indented."""
    readme = (Path(__file__).parents[3] / "examples" / "guides" / "shapes.rst").read_text(encoding="utf-8")
    assert [line.strip() for line in campaign.table(outcomes).splitlines()] == [
        line.strip() for line in readme[readme.index("of   bare  traced") :].splitlines()[:6]
    ]


@pytest.mark.parametrize("judged", ["found", "raiser", "sizes", "placed"])
def test_every_fault_is(outcomes: list[Outcome], judged: str) -> None:
    """Found; the module that raised named; both sizes named; the module with the fault named."""
    assert failing(outcomes, judged) == []


def test_the_bare_exceptions_name_no_module(outcomes: list[Outcome]) -> None:
    """What the campaign holds the library to is not in what PyTorch says already."""
    named = [one for one in outcomes if campaign.bare_names(one)[0]]
    assert len(named) < 0.02 * len(outcomes)


def test_faults_that_change_nothing_are_those_of_masks_and_squares(outcomes: list[Outcome]) -> None:
    """A mask that nothing reads, or a tensor that is the same when turned."""
    assert {one.trial.fault for one in outcomes if one.blind} <= {"mask length", "transposed"}


@pytest.fixture(scope="module")
def others() -> list[Outcome]:
    """Every trial on five families that are no models of texts."""
    found = campaign.campaign(seed=0, models=campaign.others)
    print(f"\n{campaign.table(found)}")
    return found


@pytest.mark.parametrize("judged", ["found", "raiser", "sizes"])
def test_every_fault_in_other_families_is(others: list[Outcome], judged: str) -> None:
    """Found; the module that raised named; both sizes named."""
    assert len({one.trial.model for one in others}) == 5
    assert failing(others, judged) == []


def test_faults_in_other_families_are_placed(others: list[Outcome]) -> None:
    """All but those whose size comes together of parts, or goes through a flattening, before it is noticed."""
    assert len(failing(others, "placed")) <= 0.01 * len(others)
