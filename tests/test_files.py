import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from affect_jax.files import (
    cache_folder,
    files_below,
    find_bundled,
    find_matches,
    is_hidden,
    printable,
    write_atomically,
)


def test_hidden_names_and_names_of_systems_are_ignored():
    ignored = (".ipynb_checkpoints", "__MACOSX", "._photo.jpg", ".DS_Store", "Thumbs.db", "@eaDir", ".thumbs")
    assert all(map(is_hidden, ignored))
    assert not any(map(is_hidden, ("photo.jpg", "_photo.jpg", "thumbs", "MACOSX")))


def test_printable_paths_are_one_line_and_keep_every_space_and_joiner():
    kept = ("at 9.41\u202fAM.png", "a\u3000b", "a\xa0b", "\U0001f469\u200d\U0001f52c", "a b\\c", "\ue000")
    assert all(printable(name) == name for name in kept)
    unsafe = "\n\t\r\x00\x1b\x7f\x85\x9b\u2028\u2029\u061c\u200e\u200f\u202a\u202e\u2066\u2069"
    unsafe += os.fsdecode(b"\xe9\xed\xa0\x80")
    assert all(printable(letter) == ascii(letter)[1:-1].replace("udc", "x") for letter in unsafe)


def test_cache_folder_is_that_of_the_user_or_among_the_temporary_files(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/given")
    assert cache_folder() == Path("/given/affect_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/affect_jax")

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"cache-{os.getuid()}" / "affect_jax"


def test_files_below_a_folder_are_found_once_through_links_without_loops(tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for place in (folder / "deep", folder / ".thumbs", folder / "__MACOSX", elsewhere):
        place.mkdir(parents=True)
        (place / "a.jpg").touch()
    (folder / "._a.jpg").touch()
    (folder / "b.txt").touch()
    (folder / "0_link").symlink_to(elsewhere)
    (folder / "1_link").symlink_to(folder / "deep")  # the path without a link is used
    (folder / "2_link").symlink_to(elsewhere)  # searched already
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "3_parent").symlink_to(tmp_path)  # contains the folder itself
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    (folder / "broken.jpg").symlink_to(folder / "absent.jpg")
    found = [path.relative_to(folder).as_posix() for path in files_below(folder)]
    assert found == ["0_link/a.jpg", "b.txt", "broken.jpg", "deep/a.jpg", "itself.jpg"]


def test_globs_match_each_file_once_through_links_and_nothing_hidden(tmp_path, monkeypatch):
    for place in ("loops/a", "loops/a/deep", "loops/b", "loops/@eaDir", "loops/a/__MACOSX", "loops/.thumbs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.jpg").touch()
    for place in ("a", "b"):
        (tmp_path / "loops" / place / "up").symlink_to("..")
    (tmp_path / "loops" / "Thumbs.db").touch()
    monkeypatch.chdir(tmp_path)

    def found(pattern):
        return [path.as_posix() for path in find_matches(pattern)]

    everything = ["loops/a/deep/x.jpg", "loops/a/x.jpg", "loops/b/x.jpg"]
    assert found("loops/**/*.jpg") == found("**/x.jpg") == everything
    assert found(f"{tmp_path}/loops/**/x.jpg") == [f"{tmp_path}/{path}" for path in everything]
    assert found("loops/*") == ["loops/a", "loops/b"] and found("loops/.t*") == ["loops/.thumbs"]
    assert found("loops/@eaDir/*") == ["loops/@eaDir/x.jpg"] and found("loops/*/x.jpg") == everything[1:]
    assert found("loops/**") == ["loops"] and found("**/deep/**/x.jpg") == everything[:1]
    assert found(f"../{tmp_path.name}/loops/b/[x].jpg") == [f"../{tmp_path.name}/loops/b/x.jpg"]
    assert found("none/**/x.jpg") == found("/none*/x") == []


def test_folder_that_cannot_be_listed_is_an_error_or_reported(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    scandir = os.scandir  # root may list every folder, so the system's answer is replaced

    def refuse_b(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_b)
    with pytest.raises(PermissionError, match="/b"):
        files_below(tmp_path)
    errors = []
    assert [path.parent.name for path in files_below(tmp_path, errors.append)] == ["a", "c"]
    assert [os.fspath(error.filename) for error in errors] == [str(tmp_path / "b")]


def test_the_weights_of_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = "affect_jax/predict/weights/fer2013_vgg.safetensors"
    assert Path(find_bundled(bundled)).samefile(Path(__file__).parents[1] / bundled)
    assert find_bundled("affect_jax/other.safetensors") == "affect_jax/other.safetensors"
    (tmp_path / bundled).parent.mkdir(parents=True)
    (tmp_path / bundled).touch()
    assert find_bundled(bundled) == bundled  # a file of the user goes first


def test_file_that_several_threads_write_is_always_whole(tmp_path):
    path, texts = tmp_path / "a.json", [letter * 100_000 for letter in "abcd"]
    write_atomically(path, texts[0])

    def write_and_read(text):
        for _ in range(50):
            write_atomically(path, text)
            assert path.read_text() in texts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_read, texts))
    assert list(tmp_path.iterdir()) == [path]
