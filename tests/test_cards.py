"""Model cards, their metadata as the Hub reads it."""

import yaml
from huggingface_hub import ModelCard
from PIL import Image

from configuration.parsing import FOLDERS
from modeling_mae.report.advice import _data_words as data_words
from modeling_mae.report.evaluation import report_evaluation, report_training
from modeling_mae.report.facts import (
    DataFacts,
    FeatureFacts,
    Identity,
    LabelledFacts,
    MachineFacts,
    ModelFacts,
    TrainingLog,
)
from modeling_mae.report.pretraining import report_pretraining
from modeling_mae.report.settings import folder_name, setting_text, shown_settings
from modeling_mae.tasks import TASKS  # noqa: F401  # fills the problems that cards name


def metadata(folder):
    _, header, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header)


ARGUMENTS = {
    "config_overrides": ["patch_size=4", "mask_ratio=0.5", "patch_size=7"],
    "seed": 3,
    "knn": False,
    "train_dir": "/home/me/my|pets",
    "cache_dir": "/home/me/cache",
}


def report_pets(folder, identity, data, arguments, looks):
    """What a small pre-training leaves. Its pictures are there already."""
    for name in ("reconstruction.png", *["neighbours.png"] * bool(looks.neighbours)):
        Image.new("RGB", (4, 4)).save(folder / name)
    log = TrainingLog([{"step": 5, "epoch": 0.5, "loss": 0.4321, "learning_rate": 1e-3}], 5, 10)
    machine = MachineFacts(90.0, 1, "cpu", "no")
    report_pretraining(folder, identity, arguments, log, data, ModelFacts("Two blocks"), machine, looks)


def test_pretraining_card(tmp_path):
    report_pets(
        tmp_path,
        Identity("small", "me/small", "cc-by-4.0"),
        DataFacts("Pets", "me/pets", 10, "test"),
        ARGUMENTS,
        FeatureFacts(7, {"raw pixels": 0.5, "trained encoder": 0.755}, picture="Made so and so."),
    )
    header = metadata(tmp_path)
    (entry,) = header.pop("model-index")
    (result,) = entry["results"]
    assert header == {
        "license": "cc-by-4.0",
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["mae", "masked-autoencoder", "self-supervised", "vision"],
        "datasets": ["me/pets"],
    }
    assert entry["name"] == "small" and result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "Pets", "type": "me/pets", "split": "test"}
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.755) and "k = 7" in metric["name"]
    text = (tmp_path / "README.md").read_text()
    for part in (
        "# small\n",
        "pre-trained on 10 images of Pets. Two blocks.",
        "| final loss | 0.4321 |",
        "| k-NN accuracy (k = 7), raw pixels | 50.0 % |\n| k-NN accuracy (k = 7), trained encoder | 75.5 % |",
        "(reconstruction.png)\n\nMade so and so.\n",
        # fields of the model once each, the later value; of a folder its name
        "| setting | value |\n|--|--|\n| patch_size | `7` |\n| mask_ratio | `0.5` |\n| seed | `3` |\n"
        "| knn | `false` |\n| train_dir | `my\\|pets` |\n\n",
        "(reconstruction.png)",
        "(loss.png)",
        'AutoModel.from_pretrained("me/small", trust_remote_code=True)',
        "@inproceedings{he2022masked,",
    ):
        assert part in text, part
    assert "/home/me" not in text and "cache" not in text and "neighbours" not in text


def test_pretraining_card_without_knn(tmp_path):
    report_pets(
        tmp_path, Identity("small"), DataFacts("photos", "photos", 10), {}, FeatureFacts(7, neighbours="Six images.")
    )
    header, text = metadata(tmp_path), (tmp_path / "README.md").read_text()
    # the Hub refuses a data set without an owner and results without a data set
    assert "datasets" not in header and "model-index" not in header
    assert "license" not in header  # nobody has said one
    assert "(neighbours.png)\n\nSix images.\n" in text
    assert "k-NN" not in text and 'from_pretrained("PATH_OR_HUB_ID"' in text


def report_classifier(folder, results, classes, **more):
    data = LabelledFacts("Pets", "me/pets", 3, "test", class_names=classes)
    report_training(folder, Identity("small", "me/small"), {"seed": 0}, data, results, **more)


def test_classifier_card(tmp_path):
    results = {"accuracy": 0.5, "loss": 1.25, "per_class_accuracy": [0.5, None], "confusion_matrix": [[1, 1], [0, 0]]}
    log = TrainingLog([{"step": 1, "epoch": 1.0, "eval_accuracy": 0.5}], 1, 1)
    report_classifier(tmp_path, results, ["cat: a", "dog"], log=log, training="Trained with 2 blocks tuned.")
    header = metadata(tmp_path)
    (entry,) = header["model-index"]
    (result,) = entry["results"]
    assert header["pipeline_tag"] == "image-classification" and header["datasets"] == ["me/pets"]
    assert entry["name"] == "small" and result["dataset"] == {"name": "Pets", "type": "me/pets", "split": "test"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.5, "loss": 1.25}
    text = (tmp_path / "README.md").read_text()
    for part in (
        "Trained with 2 blocks tuned.",
        "## Results on 3 images of Pets, split test",
        "| top-1 accuracy | 50.00 % |\n| cross-entropy | 1.2500 |",
        "`last/`",
        "(training.png)",
        "(confusion.png)",
        "| cat: a | 50.0 % |\n| dog | no image |",
        'AutoModelForImageClassification.from_pretrained("me/small", trust_remote_code=True)',
        "| seed | `0` |",
    ):
        assert part in text, part
    assert "top-5" not in text


def test_card_of_a_classifier_that_was_only_tested(tmp_path):
    results = {"accuracy": 0.5, "top5_accuracy": 0.75, "loss": 1.25, "per_class_accuracy": [0.5] * 101}
    report_classifier(tmp_path, results, [f"class {i}" for i in range(101)])
    text = (tmp_path / "README.md").read_text()
    assert "| top-5 accuracy | 75.00 % |" in text
    assert "`last/`" not in text and "training.png" not in text
    assert "confusion.png" not in text and "class 0" not in text  # too many classes


def test_overview_card(tmp_path):
    folders = ["n_partial-0", "n_partial-1"]
    trained = [{"name": name, "n_partial": n, "images": 1500, "accuracy": 0.85} for n, name in enumerate(folders)]
    for rows, picture in ((trained, True), (trained[:1], False)):
        raw = {"name": "raw pixels", "knn": {20: 0.625}}
        data = LabelledFacts("Pets", "pets", 9, "test")
        report_evaluation(tmp_path, Identity("small"), [raw, *rows], data, folders, k=20)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license is None and "# small" in card.text and "evaluated on Pets" in card.text
        table = "|  | images | k-NN (20) | accuracy |\n|--|--:|--:|--:|\n| raw pixels |  | 62.5 |  |\n"
        assert f"{table}| linear probing | 1,500 |  | 85.0 |" in card.text
        assert "[n_partial-0](n_partial-0/README.md), [n_partial-1](n_partial-1/README.md)." in card.text
        assert ("(partial.png)" in card.text) == picture


def test_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for place, name in (
        ("/home/me/pets", "pets"),
        ("/home/me/pets/", "pets"),
        ("runs/demo", "demo"),
        ("me/demo", "me/demo"),  # there is no such folder: it is on the Hub
        ("./me/demo", "demo"),
        ("https://host/all/shard-{000..999}.tar", "shard-{000..999}.tar"),
        (".", tmp_path.name),
    ):
        assert folder_name(place) == name


def test_several_folders_are_shown_by_their_names():
    settings = shown_settings(
        {"train_dir": ["/home/me/one", "data/two/"], "mix": [0.7, 0.3], "validation_dir": "/x/y"}
    )
    assert {name: setting_text(value) for name, value in settings.items()} == {
        "train_dir": "one two",
        "mix": "0.7 0.3",
        "validation_dir": "y",
    }
    words = data_words({"train_dir": ["/home/me/one", "two"], "mix": [0.7, 0.3]}, shared=True)
    assert words == ["--train_dir", "one", "two", "--mix", "0.7", "0.3"]


def test_no_option_of_a_folder_shows_where_it_lies():
    shown = shown_settings(dict.fromkeys(FOLDERS, "/home/me/pets"))
    assert "mask_dir" in shown and set(shown.values()) == {"pets"}
