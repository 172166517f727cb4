"""Advice after a run: what its results mean, and what to do next, with the commands to type."""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..words import counted
from .parts import Text
from .problem import Problem, problem_named
from .run import RunFiles, Training
from .settings import folder_names, setting_text
from .worth import START


FEW_UPDATES = 20  # updates per epoch that a small set should have
WAITS = 0.2  # share of the time; above it, the report gives advice about waiting
DATA_OPTIONS = (
    *("dataset_name", "dataset_config_name", "train_dir", "mix", "validation_dir", "train_split", "eval_split"),
    *("image_column_name", "streaming", "slices", "neighbour_slices"),
)


# --- pre-training ---


def judge_growth(log: list[dict[str, Any]], problem: Problem | None = None) -> str:
    """Judges the entries of `FeatureGrowth`: since when the features beat raw pixels, whether they beat the untrained
    encoder's, and whether they still improve.

    A difference counts if it is larger than the accuracy's standard error on this number of images.
    """
    baselines, entries = log[0], [entry for entry in log if "knn" in entry]
    if not entries:
        ranks = [entry["rank"] for entry in log if "rank" in entry]
        start = f", {baselines['rank_start']:.1f} of the starting weights" if "rank_start" in baselines else ""
        return f"effective rank {baselines.get('rank_untrained', ranks[0]):.1f} untrained{start}, {ranks[-1]:.1f} now"
    last, raw = entries[-1]["knn"], baselines.get("knn_raw_pixels")
    sentence = f"{(problem or problem_named(None)).knn_title} {100 * last:.1f} %"
    if raw is not None:
        behind = [entry["epoch"] for entry in entries if entry["knn"] <= raw]
        ahead = [entry["epoch"] for entry in entries if not behind or entry["epoch"] > behind[-1]]
        beats = f"beat raw pixels ({100 * raw:.1f} %) since epoch {ahead[0]:g}" if ahead else ""
        sentence = f"{sentence}, features {beats or f'do not beat raw pixels ({100 * raw:.1f} %)'}"
    untrained = baselines.get("knn_untrained", 0.0)
    if last <= untrained:
        sentence = f"{sentence}; the untrained encoder has {100 * untrained:.1f} %: no gain yet"
    if len(entries) < 2:
        return sentence
    if last > _before_last_quarter(entries, "knn") + _error(last, baselines["knn_images"]):
        return f"{sentence}; still rising: longer training will help"
    return f"{sentence}; no longer rising: longer training at these settings will bring little"


def judge_start(log: list[dict[str, Any]], problem: Problem | None = None) -> str | None:
    """Judges by the entries of `FeatureGrowth` whether the training was worth it for someone who has its starting
    weights. None if there were none, or no labels.

    A gain counts from two standard errors of an accuracy on this number of images. A mean IoU varies less.
    """
    baselines, entries = (log or [{}])[0], [entry for entry in log if "knn" in entry]
    if not entries or "knn_start" not in baselines:
        return None
    start, last = baselines["knn_start"], entries[-1]["knn"]
    figures = f"{(problem or problem_named(None)).knn_title} {100 * start:.1f} % before, {100 * last:.1f} % after"
    chance = 2 * _error(start, baselines["knn_images"])
    if last - start > chance:
        return f"{100 * (last - start):.1f} points over what you started from ({figures})"
    beyond = ""
    if 0 < chance >= abs(last - start):  # no chance is left where all were right before
        beyond = " beyond chance"
        figures += f"; less than {100 * chance:.1f} points are chance on {baselines['knn_images']:,} images"
    return f"it did not help{beyond}: use the starting weights as they are ({figures})"


def _before_last_quarter(entries: list[dict[str, Any]], key: str) -> float:
    """The highest value before the last quarter. If the last quarter does not beat it, the curve is flat."""
    return max(entry[key] for entry in entries[: max(1, 3 * len(entries) // 4)])


def _error(accuracy: float, images: int) -> float:
    """The standard error of an accuracy."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def pretraining_advice(run: RunFiles) -> list[Text]:
    """What to do after a pre-training, the most urgent first."""
    checkpoint, shared = _place(run), bool(run.summary.get("repo_id"))
    data = _data_words(run.training.arguments, shared)
    verdict = judge_start(run.training.growth, run.problem)
    advice = [Text(f"Was it worth it? {verdict[0].upper()}{verdict[1:]}.")] if verdict else []
    advice += [*_problems(run), *_problems_with_images(run), _length_of_pretraining(run)]
    if not data and run.training.arguments.get("output_dir", "").endswith("runs/demo"):
        advice.append(Text("Evaluate, with the demo's own recipe:", _launch("run_eval.py", "demo_eval")))
    else:
        words = ("--model_name_or_path", checkpoint, "--do_train", "false", "--knn", "true", *data)
        text = "Evaluate with labels. k-NN and logistic regression take minutes and need no settings:"
        advice.append(Text(text, _launch("run_eval.py", *words, "--output_dir", f"{_folder(run)}_features")))
        advice.append(_fine_tuning(run, checkpoint, data))
    advice.append(Text("Look at reconstructions and attention in a browser:", shlex.join(["mae", "app", checkpoint])))
    use = f"""from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained({checkpoint!r}, trust_remote_code=True)
model = AutoModel.from_pretrained({checkpoint!r}, trust_remote_code=True).eval()
features = model(**processor(image, return_tensors='pt')).pooler_output  # (1, width)"""
    return [*advice, Text("Use the encoder, without masking:", use, "python"), _export(checkpoint)]


def _problems(run: RunFiles) -> Iterator[Text]:
    """Problems of a pre-training."""
    losses = run.training.losses
    warmup, epochs = run.training.arguments.get("warmup_epochs") or 0, losses[-1]["epoch"] if losses else 0
    if epochs <= warmup:
        yield Text(
            f"The run ended after {counted(epochs, 'epoch')}, within the warm-up of {warmup:g}: the learning rate "
            "never reached its peak. Train longer, or with fewer --warmup_epochs."
        )
    elif run.summary.get("normalised") and losses and losses[-1]["loss"] >= 1:
        yield Text(
            f"The final loss, {losses[-1]['loss']:.3f}, is not below 1, the loss of predicting each patch's mean: "
            "the model has learnt nothing yet. Train longer, or with another --base_learning_rate."
        )
    trained, untrained = (run.knn.get(f"{name} encoder") for name in ("trained", "untrained"))
    if trained is not None and untrained is not None and trained <= untrained < 1:
        yield Text(
            f"The features are no better than those of an untrained encoder ({run.problem.knn_title} "
            f"{100 * trained:.1f} % and {100 * untrained:.1f} %). Train longer, on more images, or with smaller "
            "patches."
        )
    updates = run.summary.get("updates_per_epoch", FEW_UPDATES)
    if updates < FEW_UPDATES:
        yield Text(
            f"An epoch had {counted(updates, 'update')}. Aim for at least {FEW_UPDATES}, with a "
            f"smaller --total_batch_size."
        )


def _problems_with_images(run: RunFiles) -> Iterator[Text]:
    if run.summary.get("skipped"):
        yield Text(
            f"{counted(run.summary['skipped'], 'image')} could not be decoded. The lines that begin with "
            "skipped name them. Fix or remove them."
        )
    waited = run.summary.get("waited") or 0
    if waited > WAITS:
        yield Text(
            f"The training waited {100 * waited:.0f} % of its time for images. If cores are idle, give more "
            "--dataloader_num_workers. Smaller image files help too."
        )


def _length_of_pretraining(run: RunFiles) -> Text:
    epochs = run.training.losses[-1]["epoch"] if run.training.losses else 0
    longer = f"--num_train_epochs {max(1, math.ceil(2 * epochs))} --resume_from_checkpoint auto"
    if len(run.training.growth) > 1:
        sentence = f"Features: {judge_growth(run.training.growth, run.problem)}."
        if "no longer rising" in sentence:
            return Text(sentence)
        return Text(f"{sentence} The same command goes on from here with:", longer)
    return Text(
        "Masked autoencoders gain from long training. The same command goes on from here with the first line below. "
        "With the second, the run regularly measures whether the features still improve.",
        f"{longer}\n--eval_every_epochs {max(1, round(epochs / 10))}",
    )


def _fine_tuning(run: RunFiles, checkpoint: str, data: list[str]) -> Text:
    depth, images = run.summary.get("depth"), run.summary.get("images")
    batch = 2 ** max(3, min(10, int(math.log2(max(1, (images or 2**15) / FEW_UPDATES)))))
    words = ["--model_name_or_path", checkpoint, "--n_partial", "0", *([str(depth)] if depth else []), *data]
    words += ["--total_batch_size", str(batch), "--per_device_train_batch_size", str(min(batch, 64))]
    text = "Train classifiers: a linear probe (0), and all blocks tuned. Recipes hold the papers' settings."
    return Text(text, _launch("run_eval.py", *words, "--output_dir", f"{_folder(run)}_classifiers"))


# --- evaluation ---


def evaluation_advice(run: RunFiles) -> list[Text]:
    """What to do after an evaluation."""
    problem, trained = run.problem, [row for row in run.rows if "n_partial" in row]
    advice = [*_problems_with_images(run)]
    if all(row.get("arm", row["name"]) == row["name"] for row in trained):  # else the section about the curve has it
        for row in trained:
            advice += _length_of_training(row, run.trainings[row["name"]], problem, run.summary.get("images"))
        advice += _gain_of_pretraining(trained, problem)
    best = max(trained, key=problem.score, default=None)
    advice += _confusions(best or next((row for row in run.rows if "confusion_matrix" in row), {}), run)
    if best is None:
        return advice
    folder = f"{_place(run)}/{best['name']}" if len(trained) > 1 else _place(run)
    use = f"from transformers import pipeline\n\npredict = pipeline({problem.hub_task!r}, {folder!r}, "
    use += "trust_remote_code=True)\npredict('photograph.jpg')"
    return [*advice, Text("Use the best model:", use, "python"), _export(folder)]


def _length_of_training(
    row: dict[str, Any], training: Training, problem: Problem, images: int | None
) -> Iterator[Text]:
    key = f"eval_{problem.metric}"
    entries = [entry for entry in training.log if key in entry]
    if len(entries) < 3 or not problem.is_share or not images:
        return
    best, last, earlier = row[problem.metric], entries[-1][key], _before_last_quarter(entries, key)
    subject = f"{row['name']}: {problem.metric_title}"
    if last > earlier + _error(best, images):
        text = f"{subject} was still rising in the last quarter, from {100 * earlier:.1f} % to {100 * last:.1f} %."
        longer = f"--num_train_epochs {math.ceil(2 * entries[-1]['epoch'])} --resume_from_checkpoint auto"
        yield Text(f"{text} Longer training will help:", longer)
    elif last < best - _error(best, images):
        text = f"{subject} fell from {100 * best:.1f} % to {100 * last:.1f} % at the end. The best epoch was kept."
        yield Text(f"{text} Train for fewer epochs, or with more augmentation.")


def _gain_of_pretraining(trained: list[dict[str, Any]], problem: Problem) -> Iterator[Text]:
    scratch = next((row for row in trained if row["n_partial"] is None), None)
    tuned = [row for row in trained if row["n_partial"] and not row["name"].startswith(START)]
    if scratch is None or not tuned:
        return
    best, unit = max(tuned, key=problem.score), " %" if problem.is_share else ""
    gains = problem.score(best) > problem.score(scratch)
    values = [problem.shown(row[problem.metric]) + unit for row in (best, scratch)]
    text = f"than none: {problem.metric_title} {values[0]}, from scratch {values[1]}."
    no_gain = f"Pre-training is no better {text} Pre-train longer, or on more images."
    yield Text(f"Pre-training is better {text}" if gains else no_gain)


def _confusions(row: dict[str, Any], run: RunFiles) -> Iterator[Text]:
    names, confusion = run.summary.get("class_names") or [], row.get("confusion_matrix") or []
    if len(names) != len(confusion):
        return
    pairs = [(confusion[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    count, true, predicted = max(pairs, default=(0, 0, 0))
    if count:
        yield Text(
            f"Most often {names[true]!r} is taken for {names[predicted]!r} ({count:,} of its {sum(confusion[true]):,} "
            f"{run.problem.confused}). Look at these images first: labels may be wrong, or the image size too small. "
            "--save_predictions true lists every image."
        )


# --- shared by both ---


def _place(run: RunFiles) -> str:
    """The model's place for a command: its Hub id if the run was pushed, else its folder."""
    return run.summary.get("repo_id") or str(run.folder)


def _folder(run: RunFiles) -> str:
    return run.name if run.summary.get("repo_id") else str(run.folder).rstrip("/")


def _data_words(arguments: dict[str, Any], shared: bool) -> list[str]:
    """The options that name the images. A shared page only shows the last part of a folder's path."""
    words = []
    for name in DATA_OPTIONS:
        value = arguments.get(name)
        if value in (None, False) or (name, value) == ("train_split", "train"):
            continue
        if shared and name in ("train_dir", "validation_dir"):
            value = folder_names(value)
        words += [f"--{name}", *map(setting_text, value if isinstance(value, list) else [value])]
    return words


def _launch(script: str, *words: str) -> str:
    return shlex.join(["accelerate", "launch", script, *words])


def _export(checkpoint: str) -> Text:
    words = ["mae", "convert", checkpoint, f"{Path(checkpoint).name}.onnx", "--to", "onnx"]
    return Text("Export it, here as an ONNX graph; --help lists the other formats:", shlex.join(words))
