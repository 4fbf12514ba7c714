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
        assert searches[-1].scale <= 1 or len(searches) == 1
        for search, limit in zip(searches, (MOST_PIXELS, OVERVIEW_PIXELS), strict=False):
            assert 0 < search.scale <= enlarge
            assert height * search.scale <= search.size[0] + 1e-6 and width * search.scale <= search.size[1] + 1e-6
            assert search.size[0] * search.size[1] <= limit and not search.size[0] % 32 and not search.size[1] % 32


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


def test_small_images_are_enlarged_and_large_ones_have_an_overview():
    assert plan_searches((256, 384), enlarge=1.5) == (Search((384, 640), 1.5),)
    assert plan_searches((768, 1024), enlarge=1.5) == (Search((1280, 1536), 1.5), Search((384, 480), 0.46875))
    assert plan_searches((3000, 4000), enlarge=1.5) == plan_searches((3000, 4000))


def test_smallest_face_grows_with_the_reduction():
    assert smallest_face((480, 640)) == 6
    assert smallest_face((3000, 4000)) == pytest.approx(6 * 4000 / 2048)
    assert smallest_face((3000, 4000), most_pixels=768 * 1024) == pytest.approx(6 * 4000 / 1024)


def test_merging_gives_one_box_per_face_small_ones_of_the_finest_search_and_large_ones_of_the_overview():
    fine, overview = Search((1536, 2048), 0.5), Search((768, 1024), 0.25)
    small, large = [100, 100, 130, 140], [500, 400, 2500, 2600]
    part_of_large = [900, 900, 1900, 1990]  # twice LARGEST_FACE and more
    assert (part_of_large[2] - part_of_large[0]) * fine.scale > LARGEST_FACE
    boxes, scores = merge(
        [
            (fine, np.float32([small, part_of_large]), np.float32([0.8, 0.95])),
            (overview, np.float32([[101, 101, 131, 139], [50, 900, 90, 950], large]), np.float32([0.7, 0.8, 0.9])),
        ]
    )
    np.testing.assert_array_equal(boxes, np.float32([large, small]))
    np.testing.assert_array_equal(scores, np.float32([0.9, 0.8]))


def test_merging_nothing_gives_nothing():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    for count in (1, 2):
        boxes, scores = merge([(Search((256, 256), 1.0), *none)] * count)
        assert boxes.shape == (0, 4) and scores.shape == (0,)
