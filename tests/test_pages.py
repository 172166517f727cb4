"""report.html and the page that compares runs: whole in one file, true to the JSON files, whatever the names are."""

import base64
import json
import math
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TINY_GRAY

from configuration import EvalArguments, parse_arguments
from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.data.serve.images import MemoryImages
from modeling_mae.errors import UserError
from modeling_mae.evaluation.nearest import nearest_images
from modeling_mae.evaluation.reader import Reader
from modeling_mae.report.advice import evaluation_advice, pretraining_advice
from modeling_mae.report.comparison import compare_runs
from modeling_mae.report.facts import DataFacts, FeatureFacts, Identity, MachineFacts, ModelFacts, TrainingLog
from modeling_mae.report.neighbours import NeighbourRows, describe_neighbours, framed, save_neighbours
from modeling_mae.report.pretraining import report_pretraining
from modeling_mae.report.reconstruction import describe_picture
from modeling_mae.report.run import EVALUATION, PRETRAINING, RunFiles, Training
from modeling_mae.report.run_page import write_run_page


EMPTY = {"meta", "img", "link", "br", "hr", "input"}  # elements without an end
NASTY = '<b>&"x'


class Page(HTMLParser):
    """Checks that every element is closed in order; keeps texts, table rows, and what the page would load."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.rows, self.commands, self.tags, self.sources = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "pre":
            self.commands.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text
        if self.open and self.open[-1] == "pre":
            self.commands[-1] += text


def read_page(path) -> Page:
    """The page, after a check that it needs nothing from elsewhere."""
    html = path.read_text()
    page = Page(html)
    assert html.startswith("<!doctype html>") and page.tags.count("h1") == 1 and "script" not in page.tags
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"@import|url\(", html)
    for source in page.sources:
        content = base64.b64decode(source.partition("base64,")[2], validate=True)
        if source.startswith("data:image/svg+xml"):
            svg = content.decode()
            # names of the form of XML are no addresses to load; everything else would be
            assert set(re.findall(r'https?://[^"]*', svg)) <= {
                "http://www.w3.org/2000/svg",
                "http://www.w3.org/1999/xlink",
            }
            assert "prefers-color-scheme:dark" in svg and "#000000" not in svg
    return page


def pretrain(folder, losses=(1.25, 0.5), arguments=None, repo_id=None, source_name="pets", depth=4):
    """What a small pre-training leaves in `folder`."""
    log = [
        {"step": 10 * (i + 1), "epoch": 2.5 * (i + 1), "loss": loss, "learning_rate": 1e-3}
        for i, loss in enumerate(losses)
    ]
    settings = {"seed": 3, "warmup_epochs": 1.0, "train_dir": "/home/me/pets", "knn": True}
    report_pretraining(
        folder,
        Identity(folder.name, repo_id),
        settings if arguments is None else arguments,
        TrainingLog(log, updates=20, updates_per_epoch=4),
        DataFacts(source_name, source_name, 1234, "test"),
        ModelFacts("Two blocks", depth),
        MachineFacts(90.0, 2, "cuda", "bf16"),
        FeatureFacts(7, {"raw pixels": 0.5, "untrained encoder": 0.25, "trained encoder": 0.755}),
    )
    return folder


def test_a_pages_figures_are_those_of_the_files(tmp_path):
    page = read_page(pretrain(tmp_path / "run") / "report.html")
    rows = {row[0]: row[1] for row in page.rows}
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    knn = json.loads((tmp_path / "run" / "knn.json").read_text())
    assert float(rows["final loss"]) == log[-1]["loss"] == 0.5
    for name, accuracy in knn.items():
        assert rows[f"k-NN accuracy (k = 7), {name}"] == f"{100 * accuracy:.1f} %"
    assert rows["length"] == "20 updates, 5 epochs" and rows["time"] == "1.5 minutes on 2 x cuda"
    assert rows["seed"] == "3" and rows["knn"] == "true" and rows["train_dir"] == "pets"
    assert "1,234 images of pets. Two blocks." in (tmp_path / "run" / "report.html").read_text()


def test_names_are_shown_as_they_are_and_never_become_markup(tmp_path):
    folder = pretrain(tmp_path / NASTY, source_name=NASTY, arguments={"train_dir": f"/data/{NASTY}"})
    page, html = read_page(folder / "report.html"), (folder / "report.html").read_text()
    assert "b" not in page.tags and ["train_dir", NASTY] in page.rows and "<b>" not in html
    pretrain(tmp_path / "other")
    compare_runs([folder, tmp_path / "other"], tmp_path / "compare.html")
    page = read_page(tmp_path / "compare.html")
    assert "b" not in page.tags and ["", NASTY, "other"] in page.rows


def test_the_commands_of_a_page_are_understood(tmp_path):
    arguments = {"train_dir": "my pets", "eval_split": "test", "warmup_epochs": 1.0}
    MAEForPreTraining(MAEConfig(**TINY_GRAY)).save_pretrained(tmp_path / "my run")
    page = read_page(pretrain(tmp_path / "my run", arguments=arguments, depth=2) / "report.html")
    commands = [text for text in page.commands if text.startswith("accelerate launch run_eval.py")]
    parsed = [parse_arguments(EvalArguments, shlex.split(command)[3:]) for command in commands]
    assert [args.model_name_or_path for args in parsed] == [str(tmp_path / "my run")] * 2
    assert [(args.train_dir, args.eval_split) for args in parsed] == [("my pets", "test")] * 2
    features, classifiers = parsed
    assert features.knn and not features.do_train and classifiers.n_partial == [0, 2]
    assert classifiers.total_batch_size == 32  # the power of 2 with at least 20 updates an epoch of 1,234 images


LOG = [{"step": 20, "epoch": 5.0, "loss": 0.5, "learning_rate": 1e-3}]


def advice_on(log=LOG, arguments=None, knn=None, **summary) -> str:
    training = Training({"warmup_epochs": 1.0} if arguments is None else arguments, log)
    summary = {"normalised": True, "updates_per_epoch": 40, **summary}
    run = RunFiles(Path("run"), PRETRAINING, summary, {"run": training}, knn=knn or {})
    return "\n".join(f"{part.text}\n{part.command}" for part in pretraining_advice(run))


TROUBLES = ("is not below 1", "warm-up of", "be decoded", "of its time", "no better than", "An epoch had")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({}, None),
        ({"log": [{**LOG[0], "loss": 1.0}]}, "is not below 1"),
        ({"log": [{**LOG[0], "loss": 1.0}], "normalised": False}, None),
        ({"arguments": {"warmup_epochs": 6.0}}, "within the warm-up of 6"),
        ({"skipped": 3}, "3 images could not be decoded"),
        ({"waited": 0.35}, "waited 35 % of its time"),
        ({"waited": 0.15}, None),
        ({"knn": {"untrained encoder": 0.5, "trained encoder": 0.5}}, "no better than those of an untrained encoder"),
        ({"knn": {"untrained encoder": 0.5, "trained encoder": 0.6}}, None),
        ({"updates_per_epoch": 4}, "An epoch had 4 updates"),
        ({"updates_per_epoch": 1}, "An epoch had 1 update."),
    ],
)
def test_what_to_do_next_follows_from_the_run(changes, sentence):
    advice = advice_on(**changes)
    assert [text for text in TROUBLES if text in advice] == [text for text in TROUBLES if text in (sentence or "")]
    assert sentence is None or sentence in advice
    assert "--num_train_epochs 10 --resume_from_checkpoint auto" in advice  # twice the five epochs


def test_features_that_rise_no_longer_need_no_longer_training():
    first = {"step": 0, "epoch": 0.0, "rank_untrained": 5.0, "knn_untrained": 0.1, "knn_images": 10_000}

    def log(values):
        looks = [{"step": i, "epoch": float(i), "rank": 5.0, "knn": knn} for i, knn in enumerate(values, 1)]
        return [*LOG, first, *looks]

    assert "still rising" in (rising := advice_on(log=log([0.2, 0.3, 0.4, 0.5]))) and "auto" in rising
    assert "no longer rising" in (flat := advice_on(log=log([0.2, 0.5, 0.5, 0.5]))) and "auto" not in flat


def evaluation(rows, logs=None, **summary):
    trainings = {name: Training({}, log) for name, log in (logs or {row["name"]: [] for row in rows}).items()}
    summary = {"images": 400, "problem": "single_label_classification", **summary}
    run = RunFiles(Path("run"), EVALUATION, summary, trainings, rows=rows)
    return "\n".join(f"{part.text}\n{part.command}" for part in evaluation_advice(run))


def test_what_to_do_after_an_evaluation():
    scratch, tuned = ({"name": name, "n_partial": blocks} for name, blocks in (("from-scratch", None), ("tuned", 4)))
    better = evaluation([{**scratch, "accuracy": 0.5}, {**tuned, "accuracy": 0.625}])
    assert "Pre-training is better than none: accuracy 62.5 %, from scratch 50.0 %." in better
    worse = evaluation([{**scratch, "accuracy": 0.5}, {**tuned, "accuracy": 0.5}])
    assert "no better than none" in worse and "Pre-train longer" in worse
    start = {"name": "start-n_partial-4", "n_partial": 4, "accuracy": 0.9}  # not this pre-training
    assert "accuracy 62.5 %" in evaluation([{**scratch, "accuracy": 0.5}, {**tuned, "accuracy": 0.625}, start])
    confusion = [[4, 0, 1], [3, 1, 0], [0, 0, 0]]
    row = {**tuned, "accuracy": 0.5, "confusion_matrix": confusion}
    said = evaluation([row], class_names=["cat", "dog", "owl"])
    assert "Most often 'dog' is taken for 'cat' (3 of its 4 images)" in said
    # one standard error of 50 % on 400 images is 2.5 points
    for last, words in ((0.53, "still rising"), (0.52, None), (0.44, "fell from 50.0 % to 44.0 %")):
        log = [{"epoch": float(i), "eval_accuracy": value} for i, value in enumerate((0.3, 0.5, 0.5, last), 1)]
        said = evaluation([{**tuned, "accuracy": max(0.5, last)}], {"tuned": log})
        assert [text for text in ("still rising", "fell from 50.0 % to 44.0 %") if text in said] == [words] * bool(
            words
        )


def test_a_page_that_is_pushed_names_the_model_on_the_hub_and_no_folders(tmp_path):
    html = (pretrain(tmp_path / "run", repo_id="me/small") / "report.html").read_text()
    assert "me/small" in html and "/home/me" not in html and str(tmp_path) not in html


# --- comparing ---


def test_runs_side_by_side(tmp_path):
    one = pretrain(tmp_path / "a" / "run")
    settings = {"seed": 4, "warmup_epochs": 1.0, "config_overrides": ["patch_size=4", "patch_size=8"]}
    other = pretrain(tmp_path / "b" / "run", losses=(1.25, 0.75), arguments=settings)
    compare_runs([one, other], tmp_path / "compare.html")
    page = read_page(tmp_path / "compare.html")
    assert ["", "a/run", "b/run"] in page.rows  # as much of the path as tells them apart
    assert ["final loss", "0.5000", "0.7500"] in page.rows
    assert ["seed", "3", "4"] in page.rows and ["patch_size", "", "8"] in page.rows
    assert ["warmup_epochs", "1"] in page.rows  # alike in both


def test_evaluations_side_by_side(tmp_path):
    folders = []
    for name, accuracy in (("one", 0.75), ("two", 0.5)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        row = {"name": "n_partial-0", "n_partial": 0, "accuracy": accuracy, "images": 9}
        (folders[-1] / "results.json").write_text(json.dumps([{"name": "raw pixels", "knn": {"20": 0.25}}, row]))
        log = [{"step": 5, "epoch": 1.0, "loss": 0.9}, {"step": 5, "epoch": 1.0, "eval_accuracy": accuracy}]
        state = {"log_history": log}
        (folders[-1] / "trainer_state.json").write_text(json.dumps(state))
    compare_runs(folders, tmp_path / "compare.html")
    page, html = read_page(tmp_path / "compare.html"), (tmp_path / "compare.html").read_text()
    assert ["linear probing, accuracy", "75.0", "50.0"] in page.rows
    assert ["raw pixels, k-NN (20)", "25.0", "25.0"] in page.rows
    assert re.findall(r'class="marked">([^<]*)<', html) == [
        "75.0"
    ]  # the better of the two; nothing where all are alike


def test_a_run_that_has_not_ended_can_be_compared(tmp_path):
    (tmp_path / "running").mkdir()
    lines = [json.dumps({"step": 1, "epoch": 0.1, "loss": 0.625, "learning_rate": 0.1}), '{"step": 2, "ep']
    (tmp_path / "running" / "history.jsonl").write_text("\n".join(lines))
    compare_runs([tmp_path / "running", pretrain(tmp_path / "whole")], tmp_path / "compare.html")
    assert ["final loss", "0.6250", "0.5000"] in read_page(tmp_path / "compare.html").rows


def test_what_cannot_be_compared_is_one_line(tmp_path):
    whole = pretrain(tmp_path / "whole")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "trainer_state.json").write_text("{")
    for folders, message in (
        ([whole, tmp_path / "nowhere"], "nowhere' is not a folder: give the output_dir of a run"),
        ([whole, tmp_path / "empty"], "empty' holds no run"),
        ([whole, tmp_path / "broken"], "trainer_state.json' cannot be read"),
        ([whole, whole / ".." / "whole"], "is given twice"),
        ([whole], "two or more"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            compare_runs(folders, tmp_path / "compare.html")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="give another --out"):
        compare_runs([whole, pretrain(tmp_path / "other")], tmp_path / "whole" / "README.md" / "compare.html")
    assert not (tmp_path / "compare.html").exists()


# --- files that somebody else has changed ---


DEEP = "[" * 100_000 + "]" * 100_000
ENTRY = '{"step": 1, "epoch": 1.0, "loss": 0.5, "learning_rate": 0.1'


@pytest.mark.parametrize(
    "file, content",
    [
        *(
            (file, content)
            for file in ("trainer_state.json", "arguments.json", "summary.json", "results.json", "knn.json")
            for content in ("{", '"text"', "7", "null and void", DEEP, "\ufeff{}", '{"step": ٣}', "9" * 5000)
        ),
        ("trainer_state.json", "{}"),
        ("trainer_state.json", '{"log_history": {"loss": 1}}'),
        ("trainer_state.json", '{"log_history": [3]}'),
        ("trainer_state.json", '{"log_history": [{"step": 1}]}'),
        *(
            ("trainer_state.json", f'{{"log_history": [{entry}]}}')
            for entry in (
                f'{ENTRY}, "loss": "0.5"}}',
                f'{ENTRY}, "loss": NaN}}',
                f'{ENTRY}, "epoch": 1e999}}',
                f'{ENTRY}, "step": true}}',
                f'{ENTRY}, "rank": 3}}, {{"step": 2, "epoch": 2, "rank_untrained": 3}}',
                f'{ENTRY}, "rank": 3, "knn": 0.5}}',
                f'{ENTRY}, "rank": 3, "knn": 7, "knn_images": 3}}',
            )
        ),
        ("arguments.json", '{"config_overrides": "patch_size=4"}'),
        ("arguments.json", '{"warmup_epochs": "٣"}'),
        ("arguments.json", '{"train_dir": 7}'),
        ("arguments.json", '{"seed": {"seed": [[[]]]}}'),
        ("summary.json", '{"data": "pets"}'),
        ("summary.json", '{"seconds": 3}'),
        ("summary.json", '{"waited": "long"}'),
        ("summary.json", '{"images": -1}'),
        ("summary.json", '{"problem": "crime"}'),
        ("knn.json", '{"trained encoder": "good"}'),
        ("results.json", '[{"accuracy": 0.5}]'),
        ("results.json", '[{"name": "x", "knn": {"٣": 0.5}}]'),
        ("results.json", '[{"name": "x", "knn": {"20": "0.5"}}]'),
        ("results.json", '[{"name": "../../x", "n_partial": 0, "accuracy": 0.5}]'),
        ("results.json", '[{"name": "x", "n_partial": 0}]'),
        ("results.json", '[{"name": "x", "n_partial": 0, "accuracy": 7}]'),
        ("results.json", '[{"name": "x", "accuracy": 0.5, "confusion_matrix": [[1, 2]]}]'),
    ],
    ids=str,
)
def test_a_file_that_was_changed_is_one_line(whole_run, tmp_path, file, content):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(f"{file}'")) as error:
        write_run_page(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "line", [b"3", b"[]", b'{"step": 1}', DEEP.encode(), b"\xff\xfe"], ids=lambda line: str(line[:9])
)
def test_a_log_that_was_changed_is_one_line(tmp_path, line):
    (tmp_path / "history.jsonl").write_bytes(ENTRY.encode() + b"}\n" + line + b"\n")
    with pytest.raises(UserError, match="history.jsonl'") as error:
        write_run_page(tmp_path)
    assert "\n" not in str(error.value)


def test_a_huge_file_is_not_read(whole_run, tmp_path):
    folder = shutil.copytree(whole_run, tmp_path / "run")
    os.truncate(folder / "summary.json", 2**30)  # without taking a place on the disk
    with pytest.raises(UserError, match="1,073,741,824 bytes"):
        write_run_page(folder)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return pretrain(tmp_path_factory.mktemp("whole") / "run")


def test_links_are_neither_shown_nor_written_through(whole_run, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"SECRET" * 100)
    folder = shutil.copytree(whole_run, tmp_path / "run")
    (folder / "pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    for place in (folder / "reconstruction.png", tmp_path / "elsewhere" / "reconstruction-epoch-0001.png"):
        place.symlink_to(secret) if place.parent == folder else place.write_bytes(secret.read_bytes())
    for name in ("report.html", ".partial-report.html"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
    html = write_run_page(folder).read_text()
    assert base64.b64encode(b"SECRET").decode()[:8] not in html and "image/png" not in html
    assert secret.read_bytes() == b"SECRET" * 100 and not (folder / "report.html").is_symlink()
    (folder / "arguments.json").unlink()
    (folder / "arguments.json").symlink_to(secret)
    with pytest.raises(UserError, match="is a link"):
        write_run_page(folder)


# --- neighbours and captions ---


def shades(values, labels) -> MemoryImages:
    """An image for each value: its left half has that value, its right half the rest to 255."""
    pixels = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28).clone()
    pixels[..., 14:] = 255 - pixels[..., 14:]
    return MemoryImages(pixels, (28, 28), labels=None if labels is None else torch.tensor(labels))


class Halves(torch.nn.Module):
    """An encoder whose features are the means of both halves: then it is clear which images are near."""

    def forward(self, pixel_values):
        return torch.stack([pixel_values[..., :14].mean((1, 2, 3)), pixel_values[..., 14:].mean((1, 2, 3))], 1)


def find_nearest(train, evaluation):
    model = MAEForPreTraining(MAEConfig(**TINY_GRAY))
    model.mae = Halves()
    reader = Reader(Accelerator(cpu=True), lambda batch: batch["images"].float(), 4, 0)
    return nearest_images(reader, model, train, evaluation)


def test_neighbours_by_hand():
    """The angle of the features grows with the value, so neighbours are the nearest values."""
    found = find_nearest(
        shades([0, 100, 200, 50, 150, 250, 25, 75], [0, 1, 2, 0, 1, 2, 0, 1]), shades([240, 10], [2, 1])
    )
    values = found.neighbours[:, :, 0, 0, 0].int().tolist()
    assert values == [[250, 200, 150, 100, 75, 50], [0, 25, 50, 75, 100, 150]]
    assert found.queries[:, 0, 0, 0].tolist() == [240, 10] and found.from_evaluation and found.compared == 8
    assert found.same_class.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    query, near = (np.array([value, 255 - value]) for value in (240, 250))
    cosine = query @ near / math.sqrt(query @ query * (near @ near))
    assert found.similarity[0, 0].item() == pytest.approx(cosine, rel=1e-5)


def test_an_image_is_not_its_own_neighbour():
    found = find_nearest(shades(list(range(0, 250, 25)), None), None)
    assert len(found.queries) == 6 and found.compared == 4 and found.same_class is None and not found.from_evaluation
    queries, neighbours = found.queries[:, 0, 0, 0].tolist(), found.neighbours[:, :, 0, 0, 0].tolist()
    assert all(query not in near for query, near in zip(queries, neighbours, strict=True))
    assert find_nearest(shades([1, 2, 3], None), None) is None  # nothing is left to compare with


def test_picture_of_neighbours(tmp_path):
    cell = framed(np.full((28, 28, 3), 7, np.uint8), (1, 2, 3))
    # enlarged four times to at least 96 pixels; then a frame of 5 and a line of 1 on each side
    assert cell.shape == (112 + 12, 112 + 12, 3) and (cell[0] == 255).all() and (cell[1, 1:-1] == (1, 2, 3)).all()
    assert (cell[6:-6, 6:-6] == 7).all()
    same = torch.tensor([[True, False]])
    shown = NeighbourRows(torch.rand(1, 5, 8, 8), torch.rand(1, 2, 5, 8, 8), same)
    save_neighbours(tmp_path / "n.png", shown, [0.0] * 5, [1.0] * 5)
    assert (tmp_path / "n.png").stat().st_size > 1000
    words = describe_neighbours(1, 1000, same, True)
    assert words.startswith("1 images to evaluate on") and "1,000 training images" in words and "1 of 2 have" in words
    assert "other training images" in describe_neighbours(6, 10, None, False)


def test_the_caption_says_how_the_picture_was_made():
    words = describe_picture(8, MAEConfig(mask_type="block", mask_ratio=0.75), 3)
    for part in ("8 training images", "75 % of its patches", "random rectangles", "seed 3", "mean and deviation"):
        assert part in words
    assert "normalised" not in describe_picture(8, MAEConfig(norm_pix_loss=False), 0)
