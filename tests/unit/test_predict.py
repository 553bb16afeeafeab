"""Views, models and batches as one answer, with a runner that finds what is bright: no network is needed for that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet import predict
from edge_effdet.artifacts import Checkpoint, ModelSpec
from edge_effdet.errors import DataError
from edge_effdet.evaluation import prediction
from edge_effdet.evaluation.members import InferenceOptions, Member, chunks, predict_image, predict_images
from edge_effdet.evaluation.prediction import _readable
from edge_effdet.runtime.run import results_table
from edge_effdet.runtime.sinks import picture_names
from tests.backends import BrightBoxRunner


def member(side: int = 64, batch: int = -1, score: float = 0.8) -> Member:
    return Member(BrightBoxRunner(side, batch, score), ModelSpec("tiny", (side, side), ("light", "dark"), (1, 2)))


def picture(box: tuple[int, int, int, int] = (96, 16, 112, 48), height: int = 64, width: int = 128) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


@pytest.mark.parametrize("tta", ["none", "horizontal", "all"])
def test_every_choice_of_views_finds_the_box_where_it_is(tta: str):
    found = predict_image([member()], picture(), 0.3, InferenceOptions(tta=tta))
    np.testing.assert_allclose(found.boxes, [[96, 16, 112, 48]], atol=0.01)
    np.testing.assert_allclose(found.scores, [0.8], atol=1e-6)


def test_models_of_other_sizes_agree_in_pixels_of_the_original():
    found = predict_image([member(64), member(128, score=0.4)], picture(), 0.3)
    np.testing.assert_allclose(found.boxes, [[96, 16, 112, 48]], atol=0.01)
    np.testing.assert_allclose(found.scores, [0.6], atol=1e-6)


def test_the_threshold_is_applied_after_fusing():
    two = [member(score=0.5), member(score=0.2)]
    np.testing.assert_allclose(predict_image(two, picture(), 0.3).scores, [0.35], atol=1e-6)
    assert len(predict_image(two, picture(), 0.4)) == 0
    assert len(predict_image(two[:1], picture(), 0.4)) == 1


@pytest.mark.parametrize(("batch", "runs"), [(-1, [2, 2, 1]), (1, [1] * 5), (4, [4, 4])])
def test_batches_are_of_the_asked_or_the_engines_size_and_change_nothing(batch: int, runs: list[int]):
    images = [picture((8 * index, 0, 8 * index + 16, 32), width=128 + index) for index in range(5)]
    one = member(batch=batch)
    found = predict_images([one], images, 0.3, InferenceOptions(batch_size=2))
    assert one.runner.runs == runs
    for index, detections in enumerate(found):
        # A pixel of the input is two of the picture.
        np.testing.assert_allclose(detections.boxes, [[8 * index, 0, 8 * index + 16, 32]], atol=2.5)


def test_no_picture_is_no_run():
    one = member()
    assert predict_images([one], [], 0.3) == []
    assert one.runner.runs == []


def test_chunks():
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []


def test_pictures_of_one_stem_get_two_names():
    paths = [Path("d/a.jpg"), Path("d/a.png"), Path("d/b.tif")]
    assert list(picture_names(paths).values()) == ["a.jpg.jpg", "a.png.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # The second would be the first on a file system that ignores case.
        (("a.png", "A.bmp"), ["a.png.jpg", "A.bmp.jpg"]),
        # Without its suffix the last is what the first becomes.
        (("a.jpg", "a.png", "a.jpg.bmp"), ["a.jpg.jpg", "a.png.jpg", "a.jpg.bmp.jpg"]),
    ],
)
def test_pictures_of_any_names_get_names_of_their_own(given, expected):
    assert list(picture_names([Path("d") / name for name in given]).values()) == expected


def test_one_bad_picture_is_skipped_and_counted_and_all_bad_are_an_error(tmp_path: Path, caplog):
    Image.fromarray(picture()).save(tmp_path / "good.png")
    for name in ("empty.png", "words.png"):
        (tmp_path / name).write_text("" if name == "empty.png" else "words")
    bad = [tmp_path / "empty.png", tmp_path / "words.png"]
    assert [path.name for path, _ in _readable([bad[0], tmp_path / "good.png", bad[1]])] == ["good.png"]
    assert "2 of 3 images could not be decoded" in caplog.text
    with pytest.raises(DataError, match="None of the images could be decoded"):
        list(_readable(bad))
    with pytest.raises(DataError, match="is empty"):
        list(_readable(bad[:1]))


def test_the_table_says_nothing_where_nothing_was_found():
    detection = {"class": "light"}
    text = results_table([{"image": "a/b.jpg", "detections": [detection] * 2}, {"image": "c.jpg", "detections": []}])
    assert [line.split() for line in text.splitlines()[2:]] == [["b.jpg", "2", "2", "light"], ["c.jpg", "0", "nothing"]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--score-threshold 1.5", 2, "score threshold of 1.5 is not between 0 and 1"),
        ("--batch-size 0", 2, "--batch-size 0 makes no sense"),
        ("--source absent", 2, "no image or folder at absent"),
        ("--output {folder}", 2, "is the folder of the images themselves"),
        ("", 2, "There is no checkpoint at absent.safetensors"),
    ],
)
def test_bad_usage_is_one_sentence(arguments: str, code: int, said: str, tmp_path: Path, capsys):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    given = f"--checkpoint absent.safetensors --source {tmp_path} {arguments.format(folder=tmp_path)}".split()
    assert predict.main(given) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and said in last
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_importing_it_loads_no_torch():
    code = (
        "import sys, edge_effdet.predict; print([name for name in ('torch', 'ensemble_boxes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_done_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        Image.fromarray(picture()).save(photos / f"{name}.png")

    class Interrupted(BrightBoxRunner):
        def run(self, feeds):
            if len(self.runs) == 2:
                raise KeyboardInterrupt
            return super().run(feeds)

    model = Member(Interrupted(64), ModelSpec("tiny", (64, 64), ("light", "dark"), (1, 2)))
    checkpoint = Checkpoint(Path("best.safetensors"), model.spec, {}, "ab" * 32)
    monkeypatch.setattr(prediction, "load_members", lambda *_: ([checkpoint], [model]))
    config = prediction.PredictConfig(output=tmp_path / "found", batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        prediction.predict_files("best.safetensors", photos, config)
    kept = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [Path(each["image"]).name for each in kept["images"]] == ["a.png", "b.png"]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["a.jpg", "b.jpg", "detections.json"]
