"""What a pre-training is worth in labels: intervals, curves, the verdict in words, and the run that makes them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import TINY_GRAY, run_in_turn
from sklearn.metrics import average_precision_score
from test_eval_script import checkpoint  # noqa: F401
from test_eval_script import recipe as small_recipe  # noqa: F401

from configuration import ArgumentError, EvalArguments, EvalTraining, checkpoint_of, model_config
from configuration.decide import _fitted_to_images, _largest_divisor, decide_evaluation
from configuration.parsing import parse_mapping, recipe_text
from modeling_mae import MAEConfig, MAEForPreTraining
from modeling_mae.checkpoint import open_checkpoint
from modeling_mae.errors import UserError
from modeling_mae.evaluation.worth import (
    Curve,
    Judged,
    compare,
    labels_for,
    round_level,
    verdicts,
    write_verdicts,
)
from modeling_mae.report.problem import problem_named
from modeling_mae.report.run import read_run
from modeling_mae.report.worth import Verdict, curves_of, verdict_text, worth_table
from modeling_mae.tasks import CLASSES, MASKS, NUMBERS, SEVERAL_CLASSES
from modeling_mae.tasks.metrics import drawn_sets, iou_of
from modeling_mae.training.optim import LengthSettings, Schedule


ACCURACY = problem_named(None)
ERROR = NUMBERS.problem


def curve(labels, scores, drawn=None, units=1000) -> Curve:
    """One seed, whose drawn sets are all as the set itself."""
    scores = np.array(scores, float)[:, None]
    return Curve(np.array(labels, float), scores, scores[:, :, None] if drawn is None else drawn, units)


# --- statistics ---


@pytest.mark.parametrize("group", [1, 10])
def test_the_intervals_hold_the_truth_as_often_as_they_say(group):
    """400 simulated sets of 500 images, or of 1,000 in groups. One model is right on 80% of all images there are, the
    other on 74%, often on the same. Images of a group are alike: only intervals that draw whole groups are right."""
    generator, sets, images = np.random.default_rng(0), 400, 500 if group == 1 else 1000
    ease = np.repeat(generator.random((sets, images // group)), group, 1)  # (sets, images)
    luck = np.repeat(generator.random((sets, images // group)), group, 1)
    own, other = ease < 0.8, np.where(luck < 0.3, luck < 0.3 * 0.74, ease < 0.74)

    def coverage(groups):
        times = np.concatenate(list(drawn_sets(images, groups)))  # (draws, images)
        drawn = [times @ right.T / times.sum(1)[:, None] for right in (own, other)]  # (draws, sets)
        held = []
        for each in range(sets):
            curves = [
                curve([images], [right[each].mean()], drawn=values[None, None, :, each], units=images // group)
                for right, values in zip((own, other), drawn, strict=True)
            ]
            (low, high), *_ = compare("own", "other", *curves).intervals
            held.append(low <= 0.06 <= high)
        return np.mean(held)

    assert 0.92 <= coverage(np.arange(images) // group) <= 0.98
    assert group == 1 or coverage(None) < 0.7


def test_two_parallel_curves_are_worth_the_distance_between_them():
    """Both rise by 8 points per factor of 10 in labels, and one has with n labels what the other has with 4.1 n."""
    labels = [120, 1200, 12_000]
    own, other = ([0.5 + 0.08 * np.log10(factor * n) for n in labels] for factor in (4.1, 1))
    verdict = compare("n_partial-4", "from-scratch", curve(labels, own), curve(labels, other))
    assert verdict.times == pytest.approx(4.1) and verdict.times_interval == pytest.approx([4.1, 4.1])
    assert other[0] < own[0] < verdict.level < other[-1] and verdict.bound == ""
    assert verdict.differences == pytest.approx([0.08 * np.log10(4.1)] * 3)
    assert verdict.labels == labels
    # the same errors instead of accuracies: fewer are better, and the scores are their negatives
    lower = compare("n_partial-4", "from-scratch", *(curve(labels, np.array(s) - 2) for s in (own, other)))
    assert lower.times == pytest.approx(4.1) and lower.level > 0


def test_curves_without_a_common_value_give_a_bound():
    high, low = curve([100, 1000], [0.8, 0.9]), curve([100, 1000], [0.5, 0.7])
    better, worse = compare("a", "b", high, low), compare("b", "a", low, high)
    assert (better.times, better.bound, better.level) == (10, "more", None)
    assert (worse.times, worse.bound) == (0.1, "less")


def test_curves_that_meet_at_their_ends_only():
    """Both reach 0.5, the first with 100 labels, the second with 1,000 or with 100 too."""
    flat, rising, falling = (curve([100, 1000], scores) for scores in ([0.5, 0.5], [0.3, 0.5], [0.5, 0.3]))
    verdicts = [compare("a", "b", flat, other) for other in (rising, falling)]
    assert [(each.level, each.bound) for each in verdicts] == [(0.5, "")] * 2
    assert [each.times for each in verdicts] == pytest.approx([10, 1])


def test_a_difference_of_rounding_is_none():
    """0.1 + 0.2 is a little more than 0.3. A tie of one seed is no disagreement with the others."""
    more, same = (
        Curve(np.array([100.0]), scores, scores[:, :, None].repeat(9, 2), 100)
        for scores in (np.array([[0.1 + 0.2, 0.5]]), np.array([[0.3, 0.5]]))
    )
    verdict = compare("a", "b", more, same)
    assert verdict.difference > 0 and not verdict.is_clear
    better = dataclasses.replace(more, scores=np.array([[0.3, 0.6]]))
    assert compare("a", "b", better, same).seeds_agree


@pytest.mark.parametrize(("groups", "is_clear"), [(1, False), (5, False), (6, True), (None, True)])
def test_few_groups_tell_nothing(groups, is_clear):
    """One arm is always right and the other never. Five fair coins are alike in 2 / 2^5 = 6% of cases."""
    belonging = None if groups is None else np.arange(60) % groups
    tested = [Judged(np.full((60, 1), float(arm == "a")), arm, 1.0, 0, 90, belonging) for arm in "ab"]
    (verdict,) = verdicts(tested, [("a", "b")], CLASSES.resampled)
    assert verdict.difference == 1 and verdict.is_clear == is_clear
    text = verdict_text(verdict, ACCURACY)
    assert is_clear or f"beyond chance (95%: +100.0 to +100.0; {groups} images or groups are too few to tell)" in text


def test_labels_are_read_from_the_curve_where_it_first_gets_there():
    labels, scores = np.array([10.0, 100, 1000]), np.array([0.2, 0.6, 0.5])
    assert labels_for(0.4, labels, scores) == pytest.approx(10**1.5)
    assert labels_for(0.6, labels, scores) == pytest.approx(100)
    assert labels_for(0.1, labels, scores) == pytest.approx(10) and labels_for(0.9, labels, scores) == pytest.approx(
        1000
    )
    generator = np.random.default_rng(0)
    for low, high in np.sort(generator.normal(size=(200, 2)), 1):
        assert low <= round_level(low, high) <= high
    assert round_level(0.71, 0.86) == 0.8 and round_level(0.7512, 0.7598) == 0.755


@pytest.mark.parametrize("task", [CLASSES, SEVERAL_CLASSES, NUMBERS, MASKS], ids=lambda task: task.name)
def test_drawn_sets_have_the_metric_of_a_set_with_the_same_images_several_times(task):
    generator, images = np.random.default_rng(0), 30
    columns = {
        "top5": generator.integers(0, 3, (images, 3)),
        "label": generator.integers(0, 3, images),
        "loss": np.zeros(images),
        "prediction": generator.normal(size=(images, 2)),
        "confusion": generator.integers(0, 9, (images, 3, 3)),
    }
    if task is NUMBERS:
        columns["label"] = generator.normal(size=(images, 2))
    if task is SEVERAL_CLASSES:  # some scores are equal, some classes rare
        columns["label"] = generator.integers(0, 2, (images, 3)).astype(float)
        columns["scores"] = generator.integers(0, 5, (images, 3)) / 5
    times = generator.integers(0, 3, (8, images))
    found = task.resampled(task.each_image(columns), times.astype(float))
    rows = [np.repeat(np.arange(images), each) for each in times]
    truth = {
        CLASSES: lambda r: (columns["top5"][r, 0] == columns["label"][r]).mean(),
        NUMBERS: lambda r: ((columns["prediction"][r] - columns["label"][r]) ** 2).mean(),
        MASKS: lambda r: np.nanmean(iou_of(columns["confusion"][r].sum(0))),
        SEVERAL_CLASSES: lambda r: np.mean(
            [average_precision_score(columns["label"][r, i], columns["scores"][r, i]) for i in range(3)]
        ),
    }[task]
    assert found == pytest.approx([truth(r) for r in rows])
    whole = task.resampled(task.each_image(columns), np.ones((1, images)))[0]
    assert whole == pytest.approx(task.results(columns, 3)[task.problem.metric])


def test_folds_are_one_set_and_seeds_must_agree():
    values = {(arm, seed): np.eye(100)[: 50 + 30 * (arm == "a")].sum(0)[:, None] for arm in "ab" for seed in (0, 1)}
    tested = [
        Judged(half, arm, 1.0, seed, 90) for (arm, seed), each in values.items() for half in (each[:60], each[60:])
    ]
    (verdict,) = verdicts(tested, [("a", "b")], CLASSES.resampled)
    assert verdict.difference == pytest.approx(0.3) and verdict.seeds_agree and verdict.is_clear
    assert verdict.times is None and verdict.labels == [90]
    (turned,) = verdicts(tested, [("a", "b")], CLASSES.resampled, lower_is_better=True)
    assert turned.difference == pytest.approx(-0.3)
    assert turned.interval == pytest.approx([-end for end in verdict.interval[::-1]])
    tested = [dataclasses.replace(one, arm="ba"["ab".index(one.arm)]) if one.seed else one for one in tested]
    (verdict,) = verdicts(tested, [("a", "b")], CLASSES.resampled)
    assert not verdict.seeds_agree and not verdict.is_clear


# --- words ---


OWN, SCRATCH = "Own pre-training (4 blocks tuned)", "training from scratch"
VERDICT = Verdict(
    *("n_partial-4", "from-scratch", [120, 12_000], [0.2, 0.012], [[0.1, 0.3], [-0.006, 0.024]], 0.1, [0.05, 0.15]),
    *(True, 0.8, 4.12, [3.0, 5.21]),
)


@pytest.mark.parametrize(
    ("problem", "changes", "text"),
    [
        (ACCURACY, {}, f"{OWN} is worth 4.1 times the labels at 80% (95%: 3 to 5.2), compared with {SCRATCH}. With "
                       "all 12,000 labels: no difference beyond chance (95%: -0.6 to +2.4)."),
        (ACCURACY, {"interval": [-0.006, 0.011]},
         f"{OWN} and {SCRATCH}: no difference beyond chance (95%: -0.6 to +1.1)."),
        (ACCURACY, {"seeds_agree": False},
         f"{OWN} and {SCRATCH}: no difference beyond chance (95%: +5.0 to +15.0; the seeds disagree)."),
        (ACCURACY, {"difference": -0.021, "interval": [-0.03, -0.01], "against": "start-n_partial-0"},
         f"{OWN} is 2.1 points worse than the starting weights (no block tuned) (95%: -3.0 to -1.0)."),
        (ACCURACY, {"difference": -0.021, "interval": [-0.03, -0.01], "tune": "lora:8"},
         f"Own pre-training (4 blocks, by lora:8) is 2.1 points worse than {SCRATCH} (95%: -3.0 to -1.0)."),
        (ERROR, {"times": None, "level": None, "times_interval": None},
         f"{OWN} is 0.1 better than {SCRATCH} with 12,000 labels (95%: +0.05 to +0.15)."),
        (ACCURACY, {"times": 10.0, "level": None, "times_interval": None, "bound": "more",
                    "intervals": [[0.1, 0.3], [0.006, 0.024]]},
         f"{OWN} is worth more than 10 times the labels, compared with {SCRATCH}. With all 12,000 labels: +1.2 (95%: "
         "+0.6 to +2.4)."),
    ],
)  # fmt: skip
def test_the_verdict_in_words(problem, changes, text):
    assert verdict_text(dataclasses.replace(VERDICT, **changes), problem) == text


# --- trainings ---


def arguments(**options) -> EvalArguments:
    return EvalArguments(model_name_or_path="x", n_partial=[2.0], output_dir="out", **options)


def test_each_training_is_a_recipe_of_its_own():
    several = arguments(label_fraction=[0.01, 1.0], seeds=2, seed=5, compare=["scratch"], folds=2, knn=False)
    trainings = {training.name: training for training in several.trainings()}
    assert len(trainings) == 2 * 2 * 2 * 2
    one = trainings["from-scratch_labels-0.01_seed-6_fold-2"]
    recipe = one.recipe
    assert (one.arm, one.n_partial, str(one.folder)) == ("from-scratch", None, f"out/{one.name}")
    assert (recipe.label_fraction, recipe.seed, recipe.fold, recipe.folds, recipe.seeds) == (0.01, 6, 2, 2, 1)
    assert recipe.compare is None and recipe.from_scratch
    # a recipe alone gives the same training again
    (again,) = parse_mapping(EvalArguments, yaml.safe_load(recipe_text(recipe))).trainings()
    same = {"config_overrides": recipe.config_overrides}  # the paper's are added once more
    assert dataclasses.replace(again.recipe, **same) == recipe
    assert [training.name for training in arguments().trainings()] == ["n_partial-2"]
    assert [training.name for training in arguments(compare=["scratch"]).trainings()] == [
        "n_partial-2",
        "from-scratch",
    ]


def test_the_starting_weights_are_those_that_the_pre_training_names(tmp_path):
    run, start = tmp_path / "run", tmp_path / "start"
    run.mkdir()
    with pytest.raises(ArgumentError, match="leave start out"):
        arguments(compare=["start"]).trainings()
    (run / "recipe.yaml").write_text(f"model_name_or_path: {start}\n")
    options = dataclasses.replace(arguments(compare=["start"]), model_name_or_path=str(run))
    with pytest.raises(ArgumentError, match="began with .*start', which is not here"):
        options.trainings()
    start.mkdir()
    own, other = options.trainings()
    assert (own.recipe.model_name_or_path, other.recipe.model_name_or_path) == (str(run), str(start))
    assert (other.name, other.n_partial) == ("start-n_partial-2", 2)


def test_the_starting_weights_see_images_of_the_same_size(tmp_path):
    config, places = MAEConfig(**TINY_GRAY), [tmp_path / name for name in ("square", "bands")]
    for place, changes in zip(places, ({"image_size": 14}, {"num_channels": 3}), strict=True):
        MAEForPreTraining(MAEConfig(**{**TINY_GRAY, **changes})).save_pretrained(place)
    recipe = dataclasses.replace(arguments(), model_name_or_path=str(places[0])).trainings()[0].recipe
    training = EvalTraining("start-n_partial-2", tmp_path, 2, recipe, "start-n_partial-2")
    sized = _fitted_to_images(training, config).recipe
    assert model_config(sized).image_height_width == (28, 28)
    own = EvalTraining("n_partial-2", tmp_path, 2, recipe, "n_partial-2")
    assert _fitted_to_images(own, config) is own
    other = dataclasses.replace(training, recipe=dataclasses.replace(recipe, model_name_or_path=str(places[1])))
    with pytest.raises(ArgumentError, match="take 3 channels, the images have 1, and .* leave start out"):
        _fitted_to_images(other, config)
    with pytest.raises(ArgumentError, match=r"cannot take these images \(.*multiple of patch_size.*leave start out"):
        _fitted_to_images(training, MAEConfig(**{**TINY_GRAY, "image_size": 30, "patch_size": 6}))
    # also said before the images are read: there are none
    (places[0] / "recipe.yaml").write_text(f"model_name_or_path: {places[1]}\n")
    start = dataclasses.replace(arguments(compare=["start"], train_dir="none"), model_name_or_path=str(places[0]))
    with pytest.raises(ArgumentError, match="take 3 channels"):
        decide_evaluation(start, Accelerator(), {})
    # A pre-training that fitted the bands says how, and its starting weights are fitted in the same way.
    (places[0] / "recipe.yaml").write_text(f"model_name_or_path: {places[1]}\nnew_bands: mean\n")
    fitted = _fitted_to_images(start.trainings()[1], MAEConfig(**TINY_GRAY)).recipe
    one, three = checkpoint_of(fitted).encoder(), open_checkpoint(places[1]).encoder()
    images = torch.randn(2, 1, 28, 28)
    found, expected = (
        model.eval()(x).last_hidden_state for model, x in ((one, images), (three, images.expand(2, 3, 28, 28)))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (again,) = parse_mapping(EvalArguments, yaml.safe_load(recipe_text(fitted))).trainings()
    assert model_config(again.recipe).num_channels == 1 and again.recipe.new_bands == "mean"


@pytest.mark.parametrize("n_partial, tune", [(0, "all"), (1, "all"), (2, "lora")])
def test_new_patch_weights_never_stay_frozen(n_partial, tune):
    options = dataclasses.replace(arguments(new_bands="random", tune=tune), n_partial=[n_partial])
    with pytest.raises(ArgumentError, match="would stay frozen: give --n_partial 2, or --new_bands mean"):
        options.trainings()[0].check_blocks(2)
    dataclasses.replace(options, new_bands="mean").trainings()[0].check_blocks(2)


@pytest.mark.parametrize("images", [120, 40, 1000])
def test_few_labels_get_as_many_updates_as_all(images):
    length = LengthSettings(64, num_train_epochs=3, warmup_epochs=0.5, base_learning_rate=0.1)
    whole = Schedule.from_epochs(1000, length)
    fewer = length.for_fewer(images, 1000)
    schedule = Schedule.from_epochs(images, fewer)
    assert (schedule.updates, schedule.warmup) == (whole.updates, whole.warmup) == (45, 8)
    assert fewer.total_batch_size == {120: 64, 40: 32, 1000: 64}[images]


def test_the_table_says_whose_difference_it_is():
    rows = [
        {"name": arm, "arm": arm, "label_fraction": 1.0, "images": 120, "accuracy": 0.5}
        for arm in ("n_partial-0", "n_partial-4", "from-scratch")
    ]
    found = [
        Verdict(arm, "from-scratch", [120], [0.0], [[-0.1, 0.1]], 0.0, [-0.1, 0.1], True)
        for arm in ("n_partial-0", "n_partial-4")
    ]
    titles = [[row[0] for row in worth_table(rows, ACCURACY, each).rows][3:] for each in (found, found[1:])]
    assert titles[0] == [
        "no block tuned: better than training from scratch by",
        "4 blocks tuned: better than training from scratch by",
    ]
    assert titles[1] == ["better than training from scratch by"]
    rows[1]["tune"] = "lora:8"
    assert [row[0] for row in worth_table(rows, ACCURACY, found[1:]).rows][:3] == [
        "own pre-training (no block tuned)",
        "own pre-training (4 blocks, by lora:8)",
        "training from scratch",
    ]


@pytest.mark.parametrize(
    ("images", "limit", "total", "part", "even"),
    [(20, 10, 15, 5, 1), (20, 16, 15, 15, 1), (40, 16, 30, 15, 10), (33, 16, 32, 16, 16)],
)
def test_small_batches_split_into_whole_parts(images, limit, total, part, even):
    """A batch of 30 or 32 is halved until the images fill it, and a process takes a divisor of it."""
    length = LengthSettings(32 if images == 33 else 30, num_train_epochs=3, warmup_epochs=0.5, base_learning_rate=0.1)
    fewer = length.for_fewer(images, 1000).total_batch_size
    assert (fewer, *(_largest_divisor(fewer, limit, pairs) for pairs in (False, True))) == (total, part, even)


@pytest.mark.slow
def test_a_curve_end_to_end(tmp_path, small_recipe):  # noqa: F811
    """The whole script: a plan; two numbers of labels, from scratch; again, when all is done; and folds by group."""
    folder, folds = tmp_path / "curve", tmp_path / "folds"
    words = (small_recipe, "--n_partial", 1, "--max_train_steps", 2, "--warmup_epochs", 0.1)
    curve_words = (*words, "--label_fraction", 0.1, 1, "--compare", "scratch", "--output_dir", folder)
    fold_words = (*words, "--folds", 2, "--group_by", "^(.)", "--output_dir", folds)  # the rows by their first digit
    plan_words = (*curve_words[:-1], tmp_path / "plan", "--plan", "true")
    (plan_code, plan), (code, output), (again_code, again), (fold_code, fold_output) = run_in_turn(
        plan_words, curve_words, (*curve_words, "--resume_from_checkpoint", "auto"), fold_words, script="run_eval.py"
    )
    planned = [line.partition(": ")[2] for line in plan.splitlines() if line.startswith("training   ")]
    assert plan_code == 0 and sorted(planned) == sorted(2 * ["30 images, 2 updates", "320 images, 2 updates"])
    assert not list((tmp_path / "plan").rglob("*.safetensors"))
    assert code == 0, output
    rows = json.loads((folder / "results.json").read_text())
    kinds = [(row["arm"], row["label_fraction"], row["images"]) for row in rows]
    assert kinds == [(arm, *part) for arm in ("n_partial-1", "from-scratch") for part in ((0.1, 30), (1, 320))]
    (verdict,) = json.loads((folder / "worth.json").read_text())
    own, other = curves_of(rows, ACCURACY).values()
    gains = [mine[0] - theirs[0] for (_, mine), (_, theirs) in zip(own, other, strict=True)]
    assert verdict["differences"] == pytest.approx(gains) and verdict["labels"] == [30, 320]
    sentence = verdict_text(Verdict(**verdict), ACCURACY)
    for file in ("results.txt", "README.md", "report.html"):
        assert sentence in (folder / file).read_text().replace("&#43;", "+").replace("\\", "")
    assert sentence in output and (folder / "worth.png").stat().st_size > 0
    assert again_code == 0 and "update 2/2" not in again and sentence in again
    assert json.loads((folder / "results.json").read_text()) == rows
    assert fold_code == 0, fold_output
    rows = json.loads((folds / "results.json").read_text())
    assert [row["fold"] for row in rows] == [1, 2] and sum(row["images"] for row in rows) == 320


def test_verdicts_of_an_earlier_call_do_not_stay(tmp_path):
    (tmp_path / "worth.json").write_text("[]")
    write_verdicts(tmp_path, None, [], CLASSES)
    assert not (tmp_path / "worth.json").exists()


@pytest.mark.parametrize("change", [{"labels": []}, {"interval": [0.1]}, {"times": "x"}, {"arm": 3}, {"more": 1}])
def test_a_changed_file_of_verdicts_is_one_line(tmp_path, change):
    (tmp_path / "results.json").write_text("[]")
    content = dataclasses.asdict(VERDICT)
    for written, holds in (([content], True), ([content | change], False), ({}, True), ({"x": 1}, False)):
        (tmp_path / "worth.json").write_text(json.dumps(written))
        if holds:
            assert read_run(tmp_path).verdicts == [VERDICT] * len(written)
        else:
            with pytest.raises(UserError, match=r"worth.json"):
                read_run(tmp_path)


def test_many_times_the_labels_are_plain_numbers():
    for times, words in (
        (100.0, "more than 100 times"),
        (1234.0, "more than 1,200 times"),
        (4.12, "more than 4.1 times"),
    ):
        verdict = dataclasses.replace(VERDICT, level=None, times=times, times_interval=None, bound="more")
        assert words in verdict_text(verdict, ACCURACY)
