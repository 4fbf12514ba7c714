import csv
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds

from affect_jax import labels
from affect_jax.data import open_split
from affect_jax.data.ferplus import VOTE_COLUMNS, Ferplus, majority_label, read_votes, soft_votes
from affect_jax.data.source import BadInput, BadRows

HEADER = ",".join(["Usage", "Image name", *VOTE_COLUMNS])

# neutral, happy, surprise, sad, angry, disgust, fear, contempt, unknown, NF
VOTES_AND_LABELS = [
    ((10, 0, 0, 0, 0, 0, 0, 0, 0, 0), "neutral"),
    ((0, 6, 4, 0, 0, 0, 0, 0, 0, 0), "happy"),
    ((5, 5, 0, 0, 0, 0, 0, 0, 0, 0), None),  # half is not more than half
    ((0, 0, 4, 1, 1, 1, 1, 1, 1, 0), "surprise"),  # six single votes are outliers
    ((0, 0, 0, 5, 3, 2, 0, 0, 0, 0), None),  # 5 of 10
    ((0, 0, 0, 5, 3, 1, 1, 0, 0, 0), "sad"),  # 5 of 8
    ((0, 0, 0, 0, 6, 0, 0, 0, 4, 0), "angry"),
    ((0, 0, 0, 0, 2, 0, 0, 0, 8, 0), None),  # unknown leads
    ((0, 0, 0, 0, 0, 0, 0, 0, 0, 10), None),  # no face
    ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), None),
    ((0, 0, 0, 0, 0, 7, 0, 3, 0, 0), "disgust"),
    ((0, 0, 0, 0, 0, 0, 2, 8, 0, 0), "contempt"),
]


@pytest.mark.parametrize(("votes", "name"), VOTES_AND_LABELS)
def test_the_majority_rule_on_votes_computed_by_hand(votes, name):
    label = majority_label(np.array(votes))
    assert (None if label is None else labels.FERPLUS[label]) == name


def test_soft_votes_exclude_single_votes_and_votes_for_no_class():
    np.testing.assert_allclose(soft_votes(np.array([0, 0, 4, 1, 0, 0, 2, 0, 3, 0])), [0, 0, 4 / 6, 0, 0, 0, 2 / 6, 0])


def test_the_official_rule_keeps_the_published_counts_of_the_real_votes(shared_data):
    rows = list(read_votes(shared_data / "fer2013" / "fer2013new.csv", BadRows()))
    assert len(rows) == 35887
    kept = [(row, label) for row in rows if (label := majority_label(row.counts)) is not None]
    assert Counter(row.split for row, _ in kept) == {"train": 25060, "val": 3199, "test": 3153}
    test = Counter(labels.FERPLUS[label] for row, label in kept if row.split == "test")
    assert test == {
        "neutral": 1090,
        "happy": 893,
        "surprise": 396,
        "sad": 384,
        "angry": 273,
        "fear": 83,
        "disgust": 18,
        "contempt": 16,
    }
    votes = np.stack([soft_votes(row.counts) for row, _ in kept])
    np.testing.assert_allclose(votes.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(votes.argmax(1), [label for _, label in kept])


def test_the_real_votes_match_the_rows_of_the_challenge(shared_data):
    with open(shared_data / "fer2013" / "rows.csv", newline="") as lines:
        usages = [row["Usage"] for row in csv.DictReader(lines)]
    split = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}
    rows = read_votes(shared_data / "fer2013" / "fer2013new.csv", BadRows())
    assert [row.split for row in rows] == [split[usage] for usage in usages]


def vote_rows(sheet):
    return [
        [usage, f"fer{index:07d}.png", *map(str, votes)]
        for index, (usage, (votes, _)) in enumerate(zip(sheet.usages, VOTES_AND_LABELS, strict=True))
    ]


def prepare(source, votes, data_dir, **options):
    return Ferplus.prepare(data_dir, source=source, votes=votes, allow_other_counts=True, **options)


def test_a_prepared_data_set_has_the_kept_faces_their_labels_and_all_votes(sheet, write_csv, tmp_path):
    done = prepare(write_csv(sheet.rows()), write_csv(vote_rows(sheet), HEADER, "fer2013new.csv"), tmp_path)
    assert done.remarks[0].startswith("5 faces without a majority")
    for split, usage in {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}.items():
        kept = [index for index in sheet.indices(usage) if VOTES_AND_LABELS[index][1]]
        of = open_split("ferplus", split, tmp_path)
        batch = of.read(np.arange(len(of)))
        np.testing.assert_array_equal(batch["image"][..., 0], sheet.images[kept])
        assert [of.class_names[label] for label in batch["label"]] == [VOTES_AND_LABELS[i][1] for i in kept]
        assert batch["votes"].shape == (len(kept), 8) and batch["votes"].dtype == np.float32
        np.testing.assert_allclose(batch["votes"].sum(1), 1, atol=1e-6)
        raw = tfds.builder_from_directory(Ferplus.directory(tmp_path)).as_data_source(split)
        np.testing.assert_array_equal(
            [example["vote_counts"] for example in raw], [VOTES_AND_LABELS[i][0] for i in kept]
        )


def drop_the_last(rows):
    return rows[:-1], "fer2013new.csv, row 13: the file ends after 11 rows, .*fer2013.csv has more"


def repeat_the_last(rows):
    return [*rows, rows[-1]], "fer2013.csv, row 14: the file ends after 12 rows, .*fer2013new.csv has more"


def exchange_two(rows):
    rows[5], rows[6] = rows[6], rows[5]
    return rows, "fer2013new.csv, row 7: Usage is PublicTest, but Training in .*fer2013.csv, row 7"


def spoil_a_vote(rows):
    rows[2][4] = "-3"
    return rows, "fer2013new.csv, row 4: surprise has '-3' votes, not 0 to 10"


def cut_a_row(rows):
    rows[2] = rows[2][:8]
    return rows, "fer2013new.csv, row 4: 8 columns, the header has 12"


@pytest.mark.parametrize("spoil", [drop_the_last, repeat_the_last, exchange_two, spoil_a_vote, cut_a_row])
def test_votes_that_do_not_match_are_an_error_with_the_first_different_row(sheet, write_csv, tmp_path, spoil):
    rows, reason = spoil(vote_rows(sheet))
    votes = write_csv(rows, HEADER, "fer2013new.csv")
    with pytest.raises(BadInput, match=reason):
        prepare(write_csv(sheet.rows()), votes, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_skipped_row_of_one_file_removes_the_row_of_the_other(sheet, write_csv, tmp_path):
    faces, votes = sheet.rows(), vote_rows(sheet)
    faces[0][0], votes[1][2] = "7", "x"
    votes_csv = write_csv(votes, HEADER, "fer2013new.csv")
    done = prepare(write_csv(faces), votes_csv, tmp_path, on_bad_row="skip")
    assert len(done.skipped) == 2
    train = open_split("ferplus", "train", tmp_path)
    assert train.image_names(np.arange(len(train))) == ["fer2013.csv, row 5", "fer2013.csv, row 7"]
    np.testing.assert_array_equal(train.read(np.arange(2))["image"][..., 0], sheet.images[[3, 5]])


def test_the_command_for_an_unprepared_data_set_names_the_votes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prepare_data.py ferplus --source=PATH .*--votes=PATH"):
        open_split("ferplus", "train", tmp_path)
