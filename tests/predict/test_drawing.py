import numpy as np

from affect_jax.predict.drawing import COLORS, OTHER_COLOR, draw_faces
from affect_jax.predict.reader import Face

HAPPY = Face((10.0, 30.0, 60.5, 90.25), 0.9, "happy", {"happy": 0.75, "sad": 0.25})
UNSURE = Face((70.0, 20.0, 95.0, 50.0), 0.6, None, {"happy": 0.5, "sad": 0.5})


def test_boxes_are_drawn_in_place_and_labels_stay_inside_the_image():
    image = np.full((100, 120, 3), 90, np.uint8)
    drawn = draw_faces(image, [HAPPY, UNSURE])
    assert (image == 90).all()
    assert drawn.shape == image.shape
    assert tuple(drawn[60, 10]) == COLORS["happy"] and tuple(drawn[90, 35]) == COLORS["happy"]
    assert tuple(drawn[40, 95]) == OTHER_COLOR
    assert (drawn[92:] == 90).all()
    for box in ((0, 0, 30, 30), (100, 80, 140, 120), (-20, -20, 5, 5), (0, 0, 120, 100)):
        face = HAPPY._replace(box=box)
        labelled = (draw_faces(image, [face]) == COLORS["happy"]).all(axis=2)
        assert labelled.sum() > 400, box  # the background of the label


def test_label_covers_no_eyes_at_the_upper_border():
    for y2, top in ((60.0, 60), (200.0, 200 - 25)):
        face = HAPPY._replace(box=(10.0, 2.0, 110.0, y2))
        drawn = (draw_faces(np.full((200, 120, 3), 90, np.uint8), [face]) == COLORS["happy"]).all(axis=2)
        filled = np.flatnonzero(drawn[:, 12:108].mean(axis=1) > 0.3)
        assert filled[0] == 2 and filled[1] >= top


def test_classes_with_other_names_have_a_color_each():
    names = [f"class {number}" for number in range(10)]
    colors = []
    for name in names:
        face = Face((10.0, 30.0, 60.5, 90.25), 0.9, name, dict.fromkeys(names, 0.1))
        colors.append(tuple(draw_faces(np.full((100, 120, 3), 90, np.uint8), [face])[60, 10]))
    assert len({*colors, *COLORS.values(), OTHER_COLOR}) == 10 + len(COLORS) + 1


def test_labels_of_a_crowd_cover_no_face():
    image = np.full((300, 300, 3), 90, np.uint8)
    boxes = [(x, y, x + 20, y + 25) for y in range(40, 300, 40) for x in range(10, 280, 30)]
    crowd = [HAPPY._replace(box=tuple(map(float, box))) for box in boxes]
    drawn = (draw_faces(image, crowd) == COLORS["happy"]).all(axis=2)
    for x1, y1, x2, y2 in boxes:
        assert not drawn[y1 + 7 : y2 - 7, x1 + 6 : x2 - 6].any()
    alone = (draw_faces(image, [crowd[0]]) == COLORS["happy"]).all(axis=2).sum()
    assert alone < drawn.sum() < 0.5 * len(crowd) * alone  # some faces have labels, not all
