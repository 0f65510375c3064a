from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sweep.people.agreement import agreement_of, pair_agreement
from sweep.people.answers import AnswerLog, check_person
from sweep.people.server import SurveyServer
from sweep.people.survey import Survey, _choose, _write
from trainer.data import Split
from trainer.errors import InputError
from trainer.human_agreement import Share
from trainer.intervals import wilson_interval
from trainer.invariance import Prepared
from trainer.invariance.people import read_votes

CLASSES, IMAGES = 4, 6
FIT = "otsweep people --fit votes --crowd mine"


@pytest.fixture
def log(tmp_path: Path) -> AnswerLog:
    """Six images, the first two unperturbed, all of class 0, of which the judge says "mostly 1" where perturbed."""
    shares = np.tile(np.array([0.2, 0.7, 0.1, 0.0], np.float32), (IMAGES, 1))
    images = np.arange(IMAGES * 16, dtype=np.uint8).reshape(IMAGES, 1, 4, 4)
    labels, perturbed = np.zeros(IMAGES, np.int64), np.arange(IMAGES) >= 2
    return AnswerLog(Survey(tmp_path, images, np.arange(IMAGES), labels, perturbed, shares))


# --------------------------------------------------------------------------------------------------------- the images


def test_a_survey_mixes_perturbed_with_plain_images_and_has_no_source_twice(prepared: Prepared, tmp_path: Path) -> None:
    chosen = _choose(prepared, 20, seed=0)
    assert (~chosen["perturbed"]).sum() == 4
    assert len(set(chosen["sources"].tolist())) == 20
    judging, validation = prepared.judging, prepared.data.validation
    by_source = {int(source): row for row, source in enumerate(judging.source_index)}
    for image, source, label, changed in zip(
        *(chosen[name] for name in ("images", "sources", "labels", "perturbed")), strict=True
    ):
        shown = judging.images[by_source[int(source)]] if changed else validation.images[int(source)]
        assert np.array_equal(image, (255 * shown).round().to(torch.uint8).numpy())
        assert label == validation.labels[int(source)]
    _write(tmp_path, chosen)
    assert np.load(tmp_path / "images.npy").shape == (20, 8, 8)


def test_everyone_sees_all_images_in_an_order_of_their_own_and_the_same_again(log: AnswerLog) -> None:
    ann, bob = log.survey.order("Ann"), log.survey.order("Bob")
    assert sorted(ann) == sorted(bob) == list(range(IMAGES))
    assert ann != bob
    assert log.survey.order("Ann") == ann


# -------------------------------------------------------------------------------------------------------- the answers


def test_an_answer_is_on_disk_at_once_and_the_newest_counts(log: AnswerLog) -> None:
    log.add("Ann", 3, 1)
    log.add("Ann", 3, 2)
    log.add("Bob", 3, -1)
    with log.path.open("a") as file:
        file.write('{"person": "Ann", "ima')  # cut while it was written
    again = AnswerLog(log.survey)
    assert again.people == ["Ann", "Bob"]
    assert again.of("Ann") == {3: 2}
    assert again.votes()[3].tolist() == [2, -1]
    again.add("Bob", 4, 1)
    assert AnswerLog(log.survey).of("Bob") == {3: -1, 4: 1}, "what follows a cut line is not lost with it"


@pytest.mark.parametrize(
    ("person", "image", "answer"), [("", 0, 0), ("<b>", 0, 0), ("A", 6, 0), ("A", 0, 4), ("A", 0, -2)]
)
def test_what_can_not_be_is_refused(person: str, image: int, answer: int, log: AnswerLog) -> None:
    with pytest.raises(InputError, match="must be"):
        log.add(person, image, answer)
    assert not log.path.exists()


def test_a_name_may_have_any_letters() -> None:
    assert check_person("  Zoë  O'Brien ") == "Zoë O'Brien"


def test_votes_are_in_the_layout_of_published_studies(log: AnswerLog) -> None:
    for image in range(IMAGES):
        log.add("Ann", image, 1)
    log.add("Bob", 3, 0)
    log.write_votes()
    test = Split(torch.zeros(IMAGES, 1, 4, 4), torch.zeros(IMAGES, dtype=torch.int64))
    answers = read_votes(log.survey.folder / "votes", test, classes=CLASSES)
    assert answers.sources.tolist() == [2, 3, 4, 5]
    assert answers.shares[1].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert torch.equal(answers.images, torch.from_numpy(log.survey.images[2:].astype(np.float32)) / 255)


# ------------------------------------------------------------------------------------------------------ the agreement


def test_agreement_is_counted_on_what_was_answered(log: AnswerLog) -> None:
    for image, answer in enumerate([0, 3, 1, 1, 0, -1]):
        log.add("Ann", image, answer)
    for image, answer in ((2, 1), (3, 2), (5, 1)):
        log.add("Bob", image, answer)
    ann, bob = agreement_of(log)
    assert ann.answered == Share(5, 6)
    assert ann.right == Share(1, 2)
    assert (ann.changed, ann.agrees) == (Share(2, 3), Share(2, 3))
    assert ann.predicted_changed == pytest.approx(0.8)
    assert ann.log_loss == pytest.approx(-(2 * np.log(0.7) + np.log(0.2)) / 3)
    assert bob.answered == Share(3, 6)
    assert pair_agreement(log) == Share(1, 2)  # images 2 and 3, which both named a class for
    assert wilson_interval(*ann.agrees).low < 2 / 3


def test_nobody_agrees_with_nobody(log: AnswerLog) -> None:
    assert agreement_of(log) == []
    assert pair_agreement(log) == Share(0, 0)


# --------------------------------------------------------------------------------------------------------- the server


def call(address: str, body: Any = None, kind: str = "application/json") -> tuple[int, bytes]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": kind} if data is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_server_gives_the_page_and_keeps_answers(log: AnswerLog) -> None:
    with SurveyServer(log, fit=FIT) as server:
        at = server.address
        assert at.startswith("http://127.0.0.1:")
        assert b"What do these images show?" in call(at)[1]
        assert call(f"{at}image/3.png")[1].startswith(b"\x89PNG")
        assert call(f"{at}answer", {"person": "Ann", "image": 3, "answer": 2}) == (200, b"{}")
        state = json.loads(call(f"{at}state?person=Ann")[1])
    assert state == {"classes": CLASSES, "order": log.survey.order("Ann"), "answers": {"3": 2}, "fit": FIT}
    assert AnswerLog(log.survey).of("Ann") == {3: 2}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("image/6.png", None, 404),
        ("image/..%2f..%2fplan.yaml", None, 404),
        ("image/\u0663.png".encode().decode("latin-1"), None, 404),
        ("../answers.jsonl", None, 404),
        ("state", None, 400),
        ("state?person=%3Cb%3E", None, 400),
        ("answer", {"person": "Ann", "image": True, "answer": 1}, 400),
        ("answer", {"person": "Ann", "image": 99, "answer": 1}, 400),
        ("answer", b"[" * 3000, 400),
        ("answer", b"{" + b" " * 5000, 400),
        ("nothing", {}, 404),
    ],
)
def test_a_wrong_request_is_answered_and_kept_out(path: str, body: Any, status: int, log: AnswerLog) -> None:
    with SurveyServer(log, fit=FIT) as server:
        assert call(server.address + urllib.parse.quote(path, safe="/%?=."), body)[0] == status
    assert not log.path.exists()


def test_without_the_secret_there_is_nothing(log: AnswerLog) -> None:
    with SurveyServer(log, fit=FIT) as server:
        root = server.address.split("/", 3)
        for path in ("", "answer", "secret/"):
            assert call(f"{'/'.join(root[:3])}/{path}")[0] == 404
        posted = {"person": "Ann", "image": 0, "answer": 0}
        assert call(f"{server.address}answer", posted, kind="text/plain")[0] == 400, "another site's form"
    assert not log.path.exists()


def test_a_port_that_is_taken_is_told(log: AnswerLog) -> None:
    with SurveyServer(log, fit=FIT) as server:
        port = int(server.address.split(":")[2].split("/")[0])
        with pytest.raises(InputError, match=f"--port {port}: can't be had"):
            SurveyServer(log, fit=FIT, port=port)
