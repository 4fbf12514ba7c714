import re
from types import SimpleNamespace

import numpy as np
import pytest

from affect_jax.data import open_split
from affect_jax.data.faces import crop_box, fit, to_channels
from affect_jax.data.windows import flip_boxes
from affect_jax.predict.media import Frame
from affect_jax.predict.networks import CANDIDATE_SCORE, Classifier, Detector, compiled_predict
from affect_jax.predict.reader import FULL, RANGES, FaceReader, check_options, load
from affect_jax.predict.search import merge, plan_searches, smallest_face
from affect_jax.tasks import build_task
from affect_jax.train.mesh import data_mesh
from affect_jax.train.prediction import predict_split


@pytest.fixture
def images():
    """Five drawn scenes of two shapes."""
    split = open_split("drawn_scenes", "val", num_examples={"train": 1, "val": 5, "test": 1}, image_size=(192, 256))
    scenes = [split.read_image(index)["image"] for index in range(5)]
    return [
        np.ascontiguousarray(scene.transpose(1, 0, 2)) if index in (1, 2) else scene
        for index, scene in enumerate(scenes)
    ]


class FixedDetector:
    """A detector that returns given boxes; it recognizes an image by its first bytes."""

    def __init__(self, images, boxes):
        self.boxes = {image.tobytes()[:99]: given for image, given in zip(images, boxes, strict=True)}

    def prepare(self, images, enlarge):
        """Compile nothing."""

    def __call__(self, images, enlarge):
        found = [np.array(self.boxes[image.tobytes()[:99]], np.float32).reshape(-1, 4) for image in images]
        return [{"boxes": boxes, "scores": np.linspace(0.9, 0.6, len(boxes)), "full": False} for boxes in found]


def test_each_face_has_the_probabilities_of_its_crop_at_any_batch_size(classifier, images):
    boxes = [
        [[10, 20, 60, 90], [100, 5, 130, 40]],
        [],
        [[-5, 0, 40, 60]],
        [[20, 20, 90, 90]] * 4,
        [[150, 80, 250, 180]],
    ]
    readers = [
        FaceReader(Classifier(classifier, size), FixedDetector(images, boxes), size, 0.1, 0.0, 1.5)
        for size in (2, 3, 64)
    ]
    outcomes = [reader(images) for reader in readers]
    assert [len(faces) for faces in outcomes[0]] == [2, 0, 1, 4, 1]
    for image, faces, expected_boxes in zip(images, outcomes[0], boxes, strict=True):
        for face, box in zip(faces, expected_boxes, strict=True):
            crop = to_channels(fit(crop_box(image, box, 0.1), (48, 48)), 1).reshape(1, 48, 48, 1)
            expected = compiled_predict(classifier)(classifier.variables, {"image": crop})["probs"][0]
            np.testing.assert_allclose(list(face.probabilities.values()), expected, atol=1e-5)
            assert face.expression == ("happy", "sad", "neutral")[int(np.argmax(expected))]
            assert face.box == tuple(box)
    for other in outcomes[1:]:
        for faces, others in zip(outcomes[0], other, strict=True):
            np.testing.assert_allclose(
                [list(face.probabilities.values()) for face in faces],
                [list(face.probabilities.values()) for face in others],
                atol=1e-5,
            )


@pytest.mark.parametrize(("proposal_weight", "exposure_level", "enlarge"), [(0.0, 0.0, 1.0), (0.7, 150.0, 1.5)])
def test_detector_returns_the_detections_of_the_evaluation(
    detector, proposal_weight, exposure_level, enlarge, monkeypatch
):
    detector.config.model.box.proposal_weight = proposal_weight
    detector.config.preprocess.exposure_level = exposure_level
    options = {"num_examples": {"train": 1, "val": 5, "test": 1}, "image_size": (192, 256)}
    detector.config.data.options = options
    detector.config.data.eval_buckets = ((256, 256),)  # the size of the search of these images
    task = build_task(detector.config)

    def detect(search):
        evaluation = task.evaluation("val", enlarge=search.scale)
        if search.mirrored:
            batches = list(task.evaluation_batches(evaluation, detector.config.eval_batch_size))
            batches = [{**batch, "image": mirrored(batch["image"], batch["image_size"])} for batch in batches]
            monkeypatch.setattr(task, "evaluation_batches", lambda *arguments: batches)
        predict = compiled_predict(detector)
        found = predict_split(predict, detector.variables, task, evaluation, data_mesh())["detections"]
        return [{**one, "boxes": flip_boxes(one["boxes"], 256)} for one in found] if search.mirrored else found

    def mirrored(images, sizes):
        images = images.copy()
        for image, (_, width) in zip(images, sizes, strict=True):
            image[:, :width] = image[:, :width][:, ::-1].copy()
        return images

    searches = plan_searches((192, 256), enlarge=enlarge)
    assert [(search.scale, search.mirrored) for search in searches] == (
        [(1.0, False)] if enlarge == 1 else [(enlarge, False), (1.0, False), (1.0, True)]
    )
    found_by_search = [detect(search) for search in searches]
    scores = np.sort(np.concatenate([found["scores"] for found in found_by_search[0]]))
    threshold = float(scores[len(scores) // 2])
    images = [task.evaluation("val").split.read_image(index)["image"] for index in range(5)]
    detections = Detector(detector, detector.config.eval_batch_size, threshold)(images, [enlarge] * 5)
    for row, found in enumerate(detections):
        candidates = []
        for search, by_image in zip(searches, found_by_search, strict=True):
            kept = by_image[row]["scores"] >= CANDIDATE_SCORE * threshold
            candidates.append((search, by_image[row]["boxes"][kept], by_image[row]["scores"][kept]))
        boxes, scores = merge(candidates)
        np.testing.assert_allclose(found["scores"], scores[scores >= threshold], atol=1e-5)
        np.testing.assert_allclose(found["boxes"], boxes[scores >= threshold], atol=0.01)


def test_file_with_more_faces_than_a_search_can_find_is_named_once(classifier, detector, images):
    """The 64 proposals and the detections of the untrained detector have scores of about a half."""
    frames = [Frame(file, number, None, image) for file in "ab" for number, image in enumerate(images)]

    def files_cut(min_score, detections_per_img):
        detector.config.model.box.detections_per_img = detections_per_img
        reader, cut = FaceReader(Classifier(classifier, 4), Detector(detector, 2, min_score), 2, 0.1, 0.0, 1.5), []
        assert len(list(reader.stream(frames, lambda file, reason: cut.append((file, reason))))) == len(frames)
        return cut

    assert files_cut(0.8, detections_per_img=5) == [("a", FULL), ("b", FULL)]
    assert files_cut(0.8, detections_per_img=1000) == []
    assert files_cut(0.2, detections_per_img=1000) == [("a", FULL), ("b", FULL)]  # more proposals would be faces


def test_flip_averages_the_probabilities_of_a_face_and_its_mirror_image(classifier, images):
    faces = [crop_box(image, [20, 20, 90, 90], 0.1) for image in images]
    plain, flip = Classifier(classifier, 4), Classifier(classifier, 4, tta="flip")
    mirrored = [np.ascontiguousarray(face[:, ::-1]) for face in faces]
    np.testing.assert_allclose(flip(faces), (plain(faces) + plain(mirrored)) / 2, atol=1e-6)
    assert abs(flip(faces) - plain(faces)).max() > 1e-4


def test_face_below_min_confidence_has_probabilities_and_no_expression(classifier, images):
    sure = FaceReader(Classifier(classifier, 4), None, 4, 0.1, 0.0, 1.5)(images)
    unsure = FaceReader(Classifier(classifier, 4), None, 4, 0.1, 1.0, 1.5)(images)
    for (named,), (unnamed,) in zip(sure, unsure, strict=True):
        assert unnamed.expression is None
        assert named.expression in ("happy", "sad", "neutral")
        assert named.probabilities == unnamed.probabilities
        assert sum(named.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_stream_reads_at_most_one_batch_ahead(classifier):
    taken = []

    def frames():
        for number in range(50):
            taken.append(number)
            yield Frame("x.avi", number, 0.0, np.full((50, 50, 3), number, np.uint8))

    results = FaceReader(Classifier(classifier, 4), None, 4, 0.1, 0.0, 1.5).stream(frames())
    for wanted in range(9):
        frame, faces = next(results)
        assert frame.frame == wanted and len(faces) == 1
        assert len(taken) == 4 * (wanted // 4 + 1)


def test_images_are_enlarged_and_frames_of_videos_are_not(classifier):
    given = []

    def detect(images, enlarge):
        given.append(list(enlarge))
        return [{"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "full": False}] * len(images)

    detect.prepare = lambda images, enlarge: None
    reader = FaceReader(Classifier(classifier, 2), detect, 2, 0.1, 0.0, 1.5)
    gray = np.zeros((50, 50, 3), np.uint8)
    list(reader.stream([Frame("a.png", 0, None, gray), Frame("b.mp4", 0, 0.0, gray), Frame("b.mp4", 1, 0.1, gray)]))
    reader([gray])
    assert given == [[1.5, 1.0], [1.0], [1.5]]


def test_no_images_or_no_faces_give_empty_results(classifier, images):
    reader = FaceReader(Classifier(classifier, 4), FixedDetector(images, [[]] * 5), 4, 0.1, 0.0, 1.5)
    assert reader([]) == []
    assert reader(images[:3]) == [[], [], []]


def test_model_of_the_other_task_is_an_error(classifier, detector):
    with pytest.raises(ValueError, match="a model for detection; expected classification"):
        Classifier(detector, 1)
    with pytest.raises(ValueError, match="a model for classification; expected detection"):
        Detector(classifier, 1, 0.5)


def test_detector_of_several_classes_is_an_error(detector):
    animals = detector._replace(data=detector.data._replace(class_names=("cat", "face")))
    with pytest.raises(ValueError, match="the detector finds cat, face; give one that finds faces alone"):
        Detector(animals, 1, 0.5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"min_score": 2}, "min_score is 2; must be a number from 0 to 1"),
        ({"min_score": float("nan")}, "min_score is nan; must be a number from 0 to 1"),
        ({"batch_size": 0}, "batch_size is 0; must be a whole number of at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; must be a whole number of at least 1"),
        ({"margin": -1}, "margin is -1; must be a number from 0 to 5"),
        ({"margin": 10}, "margin is 10; must be a number from 0 to 5"),
        ({"min_confidence": "a"}, "min_confidence is 'a'; must be a number from 0 to 1"),
        ({"most_pixels": 100}, "most_pixels is 100; must be a number of at least 65536"),
        ({"enlarge": 0.5}, "enlarge is 0.5; must be a number of at least 1"),
    ],
)
def test_arguments_out_of_range_are_errors(options, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load(**options)


def test_limits_of_the_arguments_are_accepted():
    for values in zip(*RANGES.values(), strict=True):
        check_options(**{name: value for name, value in zip(RANGES, values, strict=True) if value is not None})
    check_options(min_score=np.float32(0.5), batch_size=np.int64(3))


def test_name_of_a_file_is_no_image(classifier):
    with pytest.raises(ValueError, match=r"^image 0 is a str; read it with affect_jax\.data\.images\.read_image$"):
        FaceReader(Classifier(classifier, 4), None, 4, 0.1, 0.0, 1.5)(["photo.jpg"])


def test_reduced_images_have_a_remark_on_the_smallest_face():
    detector = SimpleNamespace(smallest_face=smallest_face)
    reader = FaceReader(None, detector, 1, 0.1, 0.0, 1.5)
    assert reader.remark((480, 640)) == reader.remark((1080, 1920)) == ""
    assert reader.remark((4000, 6000)) == "faces below 18 pixels are not found"
    assert FaceReader(None, None, 1, 0.1, 0.0, 1.5).remark((4000, 6000)) == ""
