"""Pairs of images and masks: by name, by datalist, and in splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_sre.data import find_pairs, find_source, load_pairs, pair_classes, pairs
from monai_sre.data.pairs import nnunet_description


def names(pairs: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(Path(pair["image"]).name, Path(pair["label"]).name) for pair in pairs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of three patients, left and right, and their masks."""
    for eye in ("1L", "1R", "2L", "2R", "3L", "3R"):
        for name in (f"images/eye_{eye}.jpg", f"manual/eye_{eye}_1st.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    return tmp_path


PATTERNS = {"images": "images/*.jpg", "labels": "manual/*_1st.png"}


def test_partners_share_what_the_star_stands_for(folder: Path) -> None:
    (folder / "manual/eye_1L_2nd.png").touch()  # another observer's
    (folder / "images/notes.txt").touch()
    for hidden in ("images/._eye_1L.jpg", "manual/._eye_1L_1st.png"):  # as archives made on macOS hold them
        (folder / hidden).touch()
    found = find_pairs(folder, **PATTERNS)
    assert names(found)[:2] == [("eye_1L.jpg", "eye_1L_1st.png"), ("eye_1R.jpg", "eye_1R_1st.png")]
    assert len(found) == 6


def test_names_may_differ_after_the_number(tmp_path: Path) -> None:
    """The layout of DRIVE, and characters that a pattern could take for its own."""
    for name in ("images/21_training [a].tif", "1st_manual/21_manual1.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_pairs(tmp_path, "images/*_training [a].tif", "1st_manual/*_manual1.gif")
    assert names(found) == [("21_training [a].tif", "21_manual1.gif")]


def test_splits_keep_the_order_of_names(folder: Path) -> None:
    split = {
        part: [image[4:6] for image, _ in names(load_pairs(None, folder, part, **PATTERNS, num_val=2, num_test=2))]
        for part in ("train", "val", "test")
    }
    assert split == {"train": ["1L", "1R"], "val": ["2L", "2R"], "test": ["3L", "3R"]}


def test_a_whole_folder_tests(folder: Path) -> None:
    """Data that a trained network never saw leave none to train on."""
    assert len(load_pairs(None, folder, "test", **PATTERNS, num_test=6)) == 6
    assert len(load_pairs(None, folder, "val", **PATTERNS, num_val=2, num_test=4)) == 2


def test_so_many_pairs_train(folder: Path) -> None:
    def part(number: int | None, split: str = "train") -> list[tuple[str, str]]:
        return names(load_pairs(None, folder, split, **PATTERNS, num_val=1, num_test=1, num_train=number))

    assert set(part(1)) < set(part(3)) < set(part(4)) == set(part(None))
    assert part(1, "val") == [("eye_3L.jpg", "eye_3L_1st.png")]


def test_chase_db1(data_dir: Path) -> None:
    """The usual split: 20 images to train (the last 4 of them to validate), 8 to test; both eyes of a patient together."""
    options = {"images": "images/*.jpg", "labels": "labels1/*_1stHO.png", "num_val": 4, "num_test": 8}
    split = {part: load_pairs(None, data_dir / "chase_db1", part, **options) for part in ("train", "val", "test")}
    assert [len(pairs) for pairs in split.values()] == [16, 4, 8]
    patients = {part: {Path(pair["image"]).stem[6:8] for pair in pairs} for part, pairs in split.items()}
    assert patients["val"] == {"09", "10"}
    assert patients["test"] == {"11", "12", "13", "14"}
    assert not patients["train"] & (patients["val"] | patients["test"])


def test_a_datalist_says_what_is_in_a_split(folder: Path) -> None:
    entries = [{"image": f"images/eye_{eye}.jpg", "label": f"manual/eye_{eye}_1st.png"} for eye in ("2R", "1L", "3L")]
    path = folder / "list.json"
    path.write_text(json.dumps({"training": entries[:2], "validation": entries[2:], "test": []}))
    assert [image for image, _ in names(load_pairs(str(path), split="train"))] == ["eye_2R.jpg", "eye_1L.jpg"]
    assert len(load_pairs("list", folder, "val", num_val=99)) == 1
    with pytest.raises(ValueError, match=r"split='test' of .* is empty"):
        load_pairs("list.json", folder, "test")
    path.write_text(json.dumps({"training": [*entries, {"image": "a.jpg", "label": "b.png"}]}))
    with pytest.raises(FileNotFoundError, match=r"2 files of 'training' are missing: .*a\.jpg; .*b\.png"):
        load_pairs(str(path), split="train")
    path.write_text(json.dumps({"training": [{"image": "images/eye_1L.jpg", "label": 1}]}))
    with pytest.raises(ValueError, match=r"the label of training\[0\] is 1; expected the path of a mask"):
        load_pairs(str(path), split="train")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": "images/eye.jpg"}, ValueError, r"images must be a pattern with one '\*'.*got 'images/eye.jpg'"),
        ({"labels": "*/*.png"}, ValueError, r"labels must be a pattern with one '\*'"),
        ({"labels": "masks/*.png"}, FileNotFoundError, r"no file in .* matches labels='masks/\*.png'"),
        ({"labels": "manual/*.png"}, ValueError, "12 files have no partner under .*eye_1L.jpg"),
        ({"split": "training"}, ValueError, r"split must be one of \('train', 'val', 'test'\), got 'training'"),
        (
            {"num_val": 3, "num_test": 3},
            ValueError,
            "of 6 pairs none is left to train on, with num_val=3",
        ),
        (
            {"split": "test", "num_val": 4, "num_test": 8},
            ValueError,
            "num_val=4 and num_test=8 are more than the 6 pairs; num_val=0 and num_test=6 test on all of them",
        ),
        ({"num_val": -1}, ValueError, "num_val and num_test must be at least 0, got -1 and 0"),
        ({"split": "val"}, ValueError, "split='val' of .* is empty; give num_val and num_test"),
        ({"num_train": 7}, ValueError, "num_train must be None or a whole number from 1 to 6, got 7"),
    ],
    ids=str,
)
def test_errors(folder: Path, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_pairs(dataset_dir=folder, **{**PATTERNS, **options})


def test_processes_share_the_pairs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three validate: each in one share. Of three that train, two processes take as many each."""
    splits = {"dataset_dir": folder, **PATTERNS, "num_val": 3}
    found: dict[str, list[list[str]]] = {}
    for split in ("train", "val"):
        whole = [pair["image"] for pair in load_pairs(split=split, **splits)]
        found[split] = [whole]
        for rank in (0, 1):
            with monkeypatch.context() as patch:
                patch.setattr(pairs, "process_place", lambda rank=rank: (rank, 2))
                found[split].append([pair["image"] for pair in load_pairs(split=split, **splits)])
    assert len(found["val"][0]) == 3
    assert sorted(found["val"][1] + found["val"][2]) == found["val"][0]
    assert len(found["train"][1]) == len(found["train"][2]) == 2
    assert set(found["train"][1] + found["train"][2]) == set(found["train"][0])


def test_sections_that_are_not_asked_for_may_lack_labels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"image": "images/a.png", "label": "labels/a.png"}
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "a.png").touch()
    (folder / "list.json").write_text(json.dumps({"training": [entry], "validation": [entry], "test": ["a.nii.gz"]}))
    assert len(load_pairs(dataset_dir=folder / "list.json", split="train")) == 1
    with pytest.raises(ValueError, match=r"test\[0\] is 'a.nii.gz'; expected"):
        load_pairs(dataset_dir=folder / "list.json", split="test")
    monkeypatch.setattr(pairs, "process_place", lambda: (0, 2))
    with pytest.raises(ValueError, match=r"split='val' of .* has 1 pairs for 2 processes"):
        load_pairs(dataset_dir=folder / "list.json", split="val")


def test_a_folder_with_a_datalist_of_its_own_has_a_name(folder: Path) -> None:
    """As the Medical Segmentation Decathlon has it."""
    entry = {"image": "images/eye_1L.jpg", "label": "manual/eye_1L_1st.png"}
    (folder / "dataset.json").write_text(json.dumps({"training": [entry]}))
    assert names(load_pairs(folder.name, folder.parent)) == [("eye_1L.jpg", "eye_1L_1st.png")]
    with pytest.raises(FileNotFoundError, match="dataset_name is 'other', and no such JSON datalist is here or in"):
        load_pairs("other", folder)


def test_capitals_do_not_count(tmp_path: Path) -> None:
    for name in ("Images/eye 1.JPG", "Images/Eye 2.jpg", "masks/EYE 1.Png", "masks/eye 2.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_pairs(tmp_path, "images/*.jpg", "masks/*.png")
    # In the order of the images' names, by which earlier trainings were split: capitals first.
    assert names(found) == [("Eye 2.jpg", "eye 2.PNG"), ("eye 1.JPG", "EYE 1.Png")]
    (tmp_path / "Images/eye 1.jpg").touch()
    with pytest.raises(ValueError, match=r"images='images/\*\.jpg' takes .*eye 1\.JPG and .*eye 1\.jpg for one"):
        find_pairs(tmp_path, "images/*.jpg", "masks/*.png")


def test_a_list_without_validation_is_split_as_a_folder_is(folder: Path) -> None:
    """The Medical Segmentation Decathlon's have none, and tests without labels."""
    eyes = ("1L", "1R", "2L", "2R", "3L", "3R")
    entries = [{"image": f"images/eye_{eye}.jpg", "label": f"manual/eye_{eye}_1st.png"} for eye in eyes]
    path = folder / "dataset.json"

    def split(**counts: int) -> dict[str, list[str]]:
        parts = {part: load_pairs(str(path), split=part, **counts) for part in ("train", "val", "test")}
        return {part: [image[4:6] for image, _ in names(pairs)] for part, pairs in parts.items()}

    path.write_text(json.dumps({"training": entries, "test": ["./imagesTs/eye_9L.jpg"]}))
    assert split(num_val=2, num_test=1) == {"train": ["1L", "1R", "2L"], "val": ["2R", "3L"], "test": ["3R"]}
    parts = {part: load_pairs(str(path), split=part, num_test=2) for part in ("train", "test")}
    assert [[image[4:6] for image, _ in names(pairs)] for pairs in parts.values()] == [
        ["1L", "1R", "2L", "2R"],
        ["3L", "3R"],
    ]
    with pytest.raises(ValueError, match="of 6 pairs none is left to train on, with num_val=4, num_test=2"):
        split(num_val=4, num_test=2)
    path.write_text(json.dumps({"training": entries[:5], "test": entries[5:]}))
    assert split(num_val=2, num_test=2) == {"train": ["1L", "1R", "2L"], "val": ["2R", "3L"], "test": ["3R"]}
    path.write_text(json.dumps({"training": entries[:4], "validation": entries[4:5], "test": entries[5:]}))
    assert split(num_val=2, num_test=2) == {"train": ["1L", "1R", "2L", "2R"], "val": ["3L"], "test": ["3R"]}


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_third_by_name_validates_and_those_after_them_test(folder: Path, shuffled: bool) -> None:
    """In a folder, and in a list whatever its order; the numbers bound both."""
    eyes = ("3L", "1R", "2R", "1L", "3R", "2L") if shuffled else ()
    entries = [{"image": f"images/eye_{eye}.jpg", "label": f"manual/eye_{eye}_1st.png"} for eye in eyes]
    (folder / "list.json").write_text(json.dumps({"training": entries}))

    def split(**options: int | None) -> dict[str, list[str]]:
        source = ("list.json" if shuffled else None, folder)
        parts = {part: load_pairs(*source, part, **PATTERNS, **options) for part in ("train", "val", "test")}
        return {part: [image[4:6] for image, _ in names(found)] for part, found in parts.items()}

    whole = {"train": ["2L", "3R"], "val": ["1L", "2R"], "test": ["1R", "3L"]}
    assert split(every=3, num_val=None, num_test=None) == whole
    assert split(every=3, num_val=1, num_test=2) == {"train": ["2L", "2R", "3R"], "val": ["1L"], "test": ["1R", "3L"]}
    with pytest.raises(ValueError, match="every must be 0 or a whole number from 3, got 2"):
        split(every=2, num_val=None, num_test=None)


def test_the_usual_split_of_the_hippocampus(data_dir: Path) -> None:
    """By name, each 5th of 231 files validates and those after them test."""
    options = {"dataset_dir": data_dir / "msd_hippocampus", "num_val": None, "num_test": None, "every": 5}
    found = {part: load_pairs("dataset.json", split=part, **options) for part in ("train", "val", "test")}
    files = [path.name for path in sorted((data_dir / "msd_hippocampus/imagesTr").glob("*.nii.gz"))]
    assert [image for image, _ in names(found["val"])] == files[::5]
    assert [image for image, _ in names(found["test"])] == files[1::5]
    assert len(found["train"]) + len(found["val"]) + len(found["test"]) == len(files) == 231
    assert pair_classes(None, data_dir / "msd_hippocampus/dataset.json") == ["background", "Anterior", "Posterior"]


def test_where_classes_have_no_names(folder: Path) -> None:
    with pytest.raises(ValueError, match="is a folder of pairs; give class_names, the background first"):
        pair_classes(None, folder)
    path = folder / "list.json"
    path.write_text(json.dumps({"training": []}))
    with pytest.raises(ValueError, match=r"list\.json names no classes in 'labels'; give class_names"):
        pair_classes(str(path))
    with pytest.raises(FileNotFoundError, match="dataset_name is 'other', and no such JSON datalist"):
        pair_classes("other", folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a JSON datalist"):
        load_pairs(dataset_dir=tmp_path / "nowhere")


# Where a user's volumes are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [("imagesTr", "labelsTr"), ("images", "labels")])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("channel", ["", "_0000"])
def test_folders_as_usual_need_no_patterns(tmp_path: Path, folders: tuple[str, str], ending: str, channel: str) -> None:
    for folder, behind in zip(folders, (channel, ""), strict=True):
        (tmp_path / folder).mkdir()
        for case in "ab":
            (tmp_path / folder / f"{case}{behind}{ending}").touch()
    assert len(load_pairs(**find_source(tmp_path))) == 2
    (tmp_path / "dataset.json").write_text("{}")
    listed = {"dataset_name": str(tmp_path / "dataset.json"), "dataset_dir": str(tmp_path)}
    assert find_source(tmp_path) == find_source(tmp_path / "dataset.json") == listed
    (tmp_path / folders[0] / f"a_0001{ending}").touch()
    (tmp_path / "dataset.json").unlink()
    if channel:
        with pytest.raises(ValueError, match="has a file per channel; save those of a volume as one, channels last"):
            find_source(tmp_path)


@pytest.mark.parametrize("step", [1, 10])
def test_numbers_of_four_digits_are_no_channels(tmp_path: Path, step: int) -> None:
    """Volumes and maps have the same names; in nnU-Net's folders, where ``_0000`` is a channel, they never have."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            (tmp_path / folder / f"case_{step * number:04d}.nii.gz").touch()
    assert len(load_pairs(**find_source(tmp_path))) == 3
    for path in sorted((tmp_path / "imagesTr").iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    assert find_source(tmp_path)["images"] == "imagesTr/*_0000.nii.gz"
    assert len(load_pairs(**find_source(tmp_path))) == 3


def test_accents_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    for folder, name in (("images", "e\u0301t\u00e9.png"), ("labels", "\u00e9te\u0301.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    assert len(find_pairs(tmp_path, "images/*.png", "labels/*.png")) == 1


@pytest.mark.parametrize("endings", [(".nii", ".nii.gz"), (".nii.gz", ".nii")])
def test_volumes_and_maps_may_differ_in_their_endings_but_not_among_themselves(
    tmp_path: Path, endings: tuple[str, str]
) -> None:
    for folder, ending in zip(("images", "labels"), endings, strict=True):
        (tmp_path / folder).mkdir()
        for name in ("a", "b", ".c"):  # a hidden file is none
            (tmp_path / folder / f"{name}{ending}").touch()
    assert [Path(pair["image"]).name for pair in load_pairs(**find_source(tmp_path))] == [
        f"{name}{endings[0]}" for name in "ab"
    ]
    (tmp_path / f"images/d{endings[1]}").touch()
    with pytest.raises(ValueError, match="compress all of them or none, or list them"):
        find_source(tmp_path)


def test_the_folder_of_nnunet_lists_nothing_and_is_a_folder_of_volumes(tmp_path: Path) -> None:
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert find_source(tmp_path)["dataset_name"] == str(
        tmp_path / "dataset.json"
    )  # and who opens it says what it lacks
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert find_source(tmp_path)["images"] == "imagesTr/*_0000.nii.gz"
    assert nnunet_description(tmp_path / "dataset.json") == content
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "training": []}))
    assert find_source(tmp_path)["dataset_name"]
    assert nnunet_description(tmp_path / "dataset.json") == {}


def test_patterns_come_in_twos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images and labels must be given together, got 'a/\*.nii' and None"):
        find_source(tmp_path, "a/*.nii")
