import numpy as np
import pytest

from affect_jax.predict.search import (
    LARGEST_FACE,
    MOST_PIXELS,
    OVERVIEW_PIXELS,
    Search,
    merge,
    plan_searches,
    smallest_face,
)


@pytest.mark.parametrize("enlarge", [1.0, 1.5])
def test_every_image_fits_into_its_searches_and_is_enlarged_at_most_so_much(enlarge):
    rng = np.random.default_rng(0)
    for height, width in np.exp(rng.uniform(np.log(1), np.log(70_000), (300, 2))).astype(int):
        searches = plan_searches((int(height), int(width)), enlarge=enlarge)
        for search in searches:
            assert 0 < search.scale <= enlarge
            assert height * search.scale <= search.size[0] + 1e-6 and width * search.scale <= search.size[1] + 1e-6
            assert search.size[0] * search.size[1] <= MOST_PIXELS and not any(side % 32 for side in search.size)
        assert height * width * searches[-1].scale ** 2 <= 2 * OVERVIEW_PIXELS + 1
        assert [search.scale for search in searches] == sorted((search.scale for search in searches), reverse=True)


def test_every_size_of_face_has_a_search():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(30, 5000, (100, 2)):
        searches = plan_searches((int(height), int(width)), enlarge=1.5)
        for side in np.geomspace(1, 5000, 50):
            assert any(search.smallest <= side <= search.largest for search in searches)


@pytest.mark.parametrize(
    ("image", "sizes"),
    [
        ((480, 640), [(480, 640)]),  # frames of a webcam
        ((768, 1024), [(768, 1024), (384, 480)]),
        ((1080, 1920), [(1280, 2048), (384, 480)]),
        ((3000, 4000), [(1536, 2048), (384, 480)]),
        ((1500, 12_000), [(640, 4096), (256, 768)]),  # a panorama
    ],
)
def test_searches_follow_the_size_of_the_image(image, sizes):
    assert [search.size for search in plan_searches(image)] == sizes


def test_enlarged_images_are_also_searched_in_their_own_size_and_mirrored():
    searches = plan_searches((256, 384), enlarge=1.5)
    assert [(search.scale, search.mirrored) for search in searches] == [(1.5, False), (1.0, False), (1.0, True)]
    assert [search.largest for search in searches] == [LARGEST_FACE / 1.5, np.inf, np.inf]
    sizes = [search.size for search in plan_searches((768, 1024), enlarge=1.5)]
    assert sizes == [(1280, 1536), *[(768, 1024)] * 3]  # the overview needs no further program
    finest, second, mirrored, _ = plan_searches((3000, 4000), enlarge=1.5)  # too large to be enlarged
    assert finest.size == (1536, 2048) and second.scale == pytest.approx(finest.scale / 1.5, rel=0.06)
    assert mirrored == second._replace(mirrored=True)


def test_smallest_face_grows_with_the_reduction():
    assert smallest_face((480, 640)) == 6
    assert smallest_face((3000, 4000)) == pytest.approx(6 * 4000 / 2048)
    assert smallest_face((3000, 4000), most_pixels=768 * 1024) == pytest.approx(6 * 4000 / 1024)


def test_merging_averages_the_boxes_of_a_face_and_counts_the_searches_that_did_not_find_it():
    fine, own = Search((768, 1024), 1.5), Search((512, 768), 1.0)
    face, again = [100, 100, 130, 140], [102, 100, 132, 140]
    only_fine, only_own = [300, 300, 310, 310], [400, 300, 440, 340]
    boxes, scores = merge(
        [
            (fine, np.float32([face, only_fine]), np.float32([0.8, 0.5])),
            (own, np.float32([again, only_own]), np.float32([0.6, 0.9])),
        ]
    )
    cubes = np.array([1.5 * 0.8**3 + 0.6**3, 0.9**3, 1.5 * 0.5**3])
    np.testing.assert_allclose(scores, (cubes / 2.5) ** (1 / 3), rtol=1e-6)
    share = 0.6**3 / cubes[0]
    np.testing.assert_allclose(boxes, [np.add(face, [2 * share, 0, 2 * share, 0]), only_own, only_fine], rtol=1e-6)


def test_merging_takes_each_face_from_the_searches_for_its_size():
    fine, overview = Search((1536, 2048), 0.5, largest=512), Search((384, 512), 0.125, smallest=256)
    small, middle, large = [100, 100, 130, 140], [1000, 100, 1300, 400], [500, 400, 2500, 2600]
    part_of_large = [900, 900, 1900, 1990]
    boxes, scores = merge(
        [
            (fine, np.float32([small, middle, part_of_large]), np.float32([0.8, 0.5, 0.95])),
            (overview, np.float32([[101, 101, 131, 139], middle, large]), np.float32([0.7, 1.0, 0.9])),
        ]
    )
    np.testing.assert_allclose(boxes, np.float32([large, small, middle]), rtol=1e-6)
    np.testing.assert_allclose(scores, [0.9, 0.8, ((4 * 0.5**3 + 1.0**3) / 5) ** (1 / 3)], rtol=1e-6)


def test_merging_nothing_gives_nothing():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    for count in (1, 2, 3):
        boxes, scores = merge([(Search((256, 256), 1.0), *none)] * count)
        assert boxes.shape == (0, 4) and scores.shape == (0,)
