"""What a run leaves for a person to read: tables, JSON files, printed lines. The cards are in test_cards.py."""

import json
import textwrap

import numpy as np
import pyarrow.parquet
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from modeling_mae.files import replacing, write_json
from modeling_mae.report.evaluation import WORST, describe_training, report_evaluation, report_training, results_table
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
from modeling_mae.tasks import CLASSES
from modeling_mae.training.run_folder import WRITTEN


def read_json(path):
    return json.loads(path.read_text())


def names(folder):
    return {path.name for path in folder.iterdir()}


def assert_picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 1


# --- files ---


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    write_json(tmp_path / "new" / "knn.json", {"raw pixels": 0.5})
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "knn.json", {"raw pixels": object()})
    with pytest.raises(OSError), replacing(tmp_path / "new" / "knn.json") as partial:
        partial.write_text("{")
        raise OSError("disk full")
    assert (tmp_path / "new" / "knn.json").read_text() == '{\n  "raw pixels": 0.5\n}\n'
    assert names(tmp_path / "new") == {"knn.json"}


# --- pre-training ---


PRETRAINING_LOG = [
    {"step": 5, "epoch": 0.5, "loss": 0.9, "learning_rate": 1e-3},
    {"step": 15, "epoch": 1.5, "loss": 0.65432, "learning_rate": 0.0},
]


KNN = {"raw pixels": 0.5, "trained encoder": 0.755}


def report_small_pretraining(folder, skipped=4, knn=KNN, split="test"):
    report_pretraining(
        folder,
        Identity("small"),
        {"seed": 3, "betas": [0.9, 0.95]},
        TrainingLog(PRETRAINING_LOG, updates=15, updates_per_epoch=10),
        DataFacts("Pets", "me/pets", 1200, split, skipped),
        ModelFacts("Two blocks"),
        MachineFacts(90.0, 2, "cuda", "bf16"),
        FeatureFacts(7, knn),
    )


def test_report_of_pretraining(tmp_path, capsys):
    folder = tmp_path / "run"
    report_small_pretraining(folder)
    files = {
        "arguments.json",
        "trainer_state.json",
        "summary.json",
        "loss.png",
        "knn.json",
        "README.md",
        "report.html",
    }
    assert names(folder) == files and set(WRITTEN) >= files  # what the next run may remove
    assert read_json(folder / "arguments.json") == {"seed": 3, "betas": [0.9, 0.95]}
    state = read_json(folder / "trainer_state.json")
    assert state == {"global_step": 15, "epoch": 1.5, "log_history": PRETRAINING_LOG}
    assert read_json(folder / "knn.json") == {"raw pixels": 0.5, "trained encoder": 0.755}
    assert_picture(folder / "loss.png")
    text = (folder / "README.md").read_text()
    for part in (
        "pre-trained on 1,200 images of Pets. Two blocks.",
        "| final loss | 0.6543 |",
        "| length | 15 updates, 1.5 epochs |",
        "| time | 1.5 minutes on 2 x cuda |",
        "| precision | bf16 |",
        "| bad images skipped | 4 |",
        "| k-NN accuracy (k = 7), trained encoder | 75.5 % |",
        "(loss.png)",
    ):
        assert part in text, part
    assert capsys.readouterr().out.splitlines() == [
        "skipped    4 of 1200 images: they cannot be decoded",
        "k-NN accuracy, raw pixels          50.0 %",
        "k-NN accuracy, trained encoder     75.5 %",
        f"pictures   {folder}/reconstruction.png  {folder}/loss.png",
        f"model      {folder}: MAEModel.from_pretrained('{folder}')",
        f"report     {folder}/report.html",
    ]


def test_report_of_pretraining_without_labels(tmp_path, capsys):
    report_small_pretraining(tmp_path, skipped=0, knn={}, split=None)
    assert "knn.json" not in names(tmp_path)
    text, output = (tmp_path / "README.md").read_text(), capsys.readouterr().out
    assert "k-NN" not in text + output and "skipped" not in text + output
    assert len(output.splitlines()) == 3


# --- evaluation: one classifier ---


RESULTS = {"accuracy": 2 / 3, "loss": 1.25, "per_class_accuracy": [0.5, 1.0], "confusion_matrix": [[1, 1], [0, 1]]}
EVALUATION_LOG = [
    {"step": 5, "epoch": 0.5, "loss": 0.9, "learning_rate": 1e-3},
    {"step": 10, "epoch": 1.0, "eval_accuracy": 0.5, "eval_loss": 1.5},
    {"step": 20, "epoch": 2.0, "eval_accuracy": 2 / 3, "eval_loss": 1.25},
]


def report_small_training(folder, results=RESULTS, class_names=("cat", "dog"), **more):
    data = LabelledFacts("Pets", "me/pets", 1003, "test", class_names=list(class_names))
    report_training(folder, Identity("small"), {"seed": 3}, data, results, **more)


def test_report_of_a_training(tmp_path):
    predictions = {
        "label": np.array([0, 0, 1]),
        "top5": np.array([[0, 1], [1, 0], [1, 0]]),
        "confidence": np.array([0.5, 0.75, 0.25]),
        "loss": np.array([1.0, 2.0, 0.75]),
    }
    report_small_training(
        tmp_path,
        predictions=CLASSES.written(predictions),
        training="Trained somehow.",
        log=TrainingLog(EVALUATION_LOG, updates=20, updates_per_epoch=10),
    )
    assert names(tmp_path) == {
        "arguments.json",
        "trainer_state.json",
        "confusion.png",
        "training.png",
        "predictions.parquet",
        "README.md",
    }
    assert read_json(tmp_path / "arguments.json") == {"seed": 3}
    state = read_json(tmp_path / "trainer_state.json")
    assert state == {"global_step": 20, "epoch": 2.0, "log_history": EVALUATION_LOG}
    assert pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pydict() == {
        "label": [0, 0, 1],
        "prediction": [0, 1, 1],
        "confidence": [0.5, 0.75, 0.25],
        "top5": [[0, 1], [1, 0], [1, 0]],
        "loss": [1.0, 2.0, 0.75],
    }
    assert_picture(tmp_path / "confusion.png")
    assert_picture(tmp_path / "training.png")
    text = (tmp_path / "README.md").read_text()
    assert "Trained somehow." in text and "## Results on 1,003 images of Pets, split test" in text
    assert "| top-1 accuracy | 66.67 % |" in text and "| dog | 100.0 % |" in text


def test_report_of_a_classifier_that_was_only_tested(tmp_path):
    report_small_training(tmp_path / "few")
    assert names(tmp_path / "few") == {"confusion.png", "README.md"}
    classes = [str(i) for i in range(101)]
    results = {"accuracy": 1.0, "per_class_accuracy": [1.0] * 101, "confusion_matrix": np.eye(101).tolist()}
    report_small_training(tmp_path / "many", class_names=classes, results=results)
    assert names(tmp_path / "many") == {"README.md"}


def test_the_sentence_on_a_training():
    for n_partial, label_fraction, sentence in (
        (0, 1.0, "Trained by linear probing, on 1,500 images of Pets."),
        (0.5, 1.0, "Trained with 0.5 blocks tuned, on 1,500 images of Pets."),
        (1.0, 1.0, "Trained with 1 block tuned, on 1,500 images of Pets."),
        (None, 0.1, "Trained from scratch, with all blocks, on 1,500 images of Pets, 10% of all."),
    ):
        values = {"n_partial": n_partial, "label_fraction": label_fraction}
        assert describe_training(images=1500, source_name="Pets", **values) == sentence
    attentive = describe_training(images=1500, source_name="Pets", n_partial=0, label_fraction=1.0, reads="attention")
    assert attentive == "Trained by attentive probing, on 1,500 images of Pets."


# --- evaluation: the whole call ---


EVALUATION_FILES = {"results.json", "results.txt", "summary.json", "report.html"}
FROZEN = [
    {"name": "raw pixels", "knn": {10: 0.5, 20: 0.625}, "logistic_regression": 0.8125},
    {"name": "pre-trained encoder", "knn": {10: 0.75}},  # too few images for k = 20
]
TRAINED = [
    {"name": "n_partial-0", "n_partial": 0, "images": 1500, "accuracy": 0.85, "last_accuracy": 0.84},
    {"name": "n_partial-0.5", "n_partial": 0.5, "images": 1500, "accuracy": 0.875, "last_accuracy": 0.0625},
    {"name": "from-scratch", "n_partial": None, "images": 150, "accuracy": 1.0, "last_accuracy": 0.9},
]
TABLE = """\
                        images  k-NN (20)  logistic regr.  accuracy  last epoch
raw pixels                           62.5            81.2
pre-trained encoder
linear probing           1,500                                 85.0        84.0
fine-tuned blocks: 0.5   1,500                                 87.5         6.2
from-scratch               150                                100.0        90.0"""


def stripped(text):
    return [line.rstrip() for line in text.splitlines()]


def test_results_table():
    table = results_table(FROZEN + TRAINED, k=20, problem=CLASSES.problem)
    assert stripped(table) == TABLE.splitlines()
    # the widest cells are 22, 6, 9, 14, 8 and 10 characters wide, with two spaces between the columns
    assert {len(line) for line in table.splitlines()} == {79}


def test_results_table_leaves_out_what_nobody_has():
    rows = [
        {"name": "checkpoint", "accuracy": 0.5, "last_accuracy": None},
        {"name": "n_partial-12", "n_partial": 12.0},
    ]
    assert stripped(results_table(rows, k=20, problem=CLASSES.problem)) == stripped(
        textwrap.dedent("""\
                                   accuracy
            checkpoint                 50.0
            fine-tuned blocks: 12""")
    )
    rows = [{"name": "features", "knn": {20: 0.1, 7: 0.5}}]
    assert stripped(results_table(rows, k=7, problem=CLASSES.problem)) == ["          k-NN (7)", "features      50.0"]


def test_results_table_of_classes_of_different_size():
    shares = {"accuracy": 0.75, "balanced_accuracy": 0.625, "f1_macro": 0.5, "auroc": 0.875}
    row = {"name": "n_partial-0", "n_partial": 0, "pooling": "attention", **shares}
    level = {**row, "confusion_matrix": [[2, 0, 0], [0, 4, 0], [0, 0, 0]]}  # a class without images is none of them
    head, values = stripped(results_table([level], k=20, problem=CLASSES.problem))
    assert head.split() == ["accuracy"] and values.split() == ["attentive", "probing", "75.0"]
    imbalanced = {**row, "confusion_matrix": [[2, 0, 0], [1, 4, 0], [0, 0, 0]]}
    head, values = stripped(
        results_table([{"name": "raw pixels", "knn": {20: 0.5}}, imbalanced], k=20, problem=CLASSES.problem)
    )[::2]
    assert head.split() == ["k-NN", "(20)", "accuracy", "balanced", "F1", "macro", "AUROC"]
    assert values.split() == ["attentive", "probing", "75.0", "62.5", "50.0", "87.5"]


def report_small_evaluation(folder, rows, folders, skipped=0):
    data = LabelledFacts("Pets", "pets", 9, "test", skipped)
    report_evaluation(folder, Identity("small"), rows, data, folders, k=20)


def test_report_of_an_evaluation(tmp_path, capsys):
    report_small_evaluation(tmp_path, FROZEN + TRAINED, ["n_partial-0", "n_partial-0.5", "from-scratch"], skipped=4)
    assert names(tmp_path) == {*EVALUATION_FILES, "partial.png", "README.md"}
    assert set(WRITTEN) >= {*EVALUATION_FILES, WORST}
    rows = read_json(tmp_path / "results.json")
    assert rows[0]["knn"] == {"10": 0.5, "20": 0.625} and rows[2:] == TRAINED  # JSON's keys are text
    assert stripped((tmp_path / "results.txt").read_text()) == TABLE.splitlines()
    assert_picture(tmp_path / "partial.png")
    card = ModelCard.load(tmp_path / "README.md")
    assert "# small" in card.text and "(partial.png)" in card.text and "(from-scratch/README.md)" in card.text
    assert "| fine-tuned blocks: 0.5 | 1,500 |  |  | 87.5 | 6.2 |" in card.text
    assert stripped(capsys.readouterr().out) == [
        f"picture    {tmp_path}/partial.png",
        "skipped    4 images: cannot be decoded",
        "",
        *TABLE.splitlines(),
        "",
        f"results    {tmp_path}/results.json",
        f"report     {tmp_path}/report.html",
    ]


def test_report_of_one_classifier_leaves_its_card_alone(tmp_path, capsys):
    (tmp_path / "README.md").write_text("the classifier's own")
    report_small_evaluation(tmp_path, TRAINED[:1], ["n_partial-0"])
    assert names(tmp_path) == {*EVALUATION_FILES, "README.md"}
    assert (tmp_path / "README.md").read_text() == "the classifier's own"
    assert stripped(capsys.readouterr().out) == [
        "",
        "                images  accuracy  last epoch",
        "linear probing   1,500      85.0        84.0",
        "",
        f"results    {tmp_path}/results.json",
        f"report     {tmp_path}/report.html",
    ]
