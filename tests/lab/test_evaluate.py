"""`instantstyle evaluate`: the pairs, the pictures, the metrics with their intervals, and what is kept of a run."""

import builtins
import dataclasses
import importlib.util
import json
import math
import operator
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.transforms import BboxBase

from instantstyle import tiny
from instantstyle.commands import cli
from instantstyle.inference.request import Machine
from instantstyle.inference.session import Session
from instantstyle.lab import conditions, evaluate, evaluation, metrics, pictures, plot, results, tables, verdicts
from instantstyle.lab.conditions import Condition
from instantstyle.lab.pairs import POOL, SPLITS, Pairs, make_seed, sample_pairs
from instantstyle.tiny import judges, world
from instantstyle.tiny.judges import Verdicts
from training import data


PIXEL_TOLERANCE = 1e-5
STEPS = 2


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return tiny.path()


@pytest.fixture(scope="module")
def session(checkpoint):
    return Session(Machine(model=str(checkpoint), device="cpu", dtype="float32"))


def make_verdicts(pairs: Pairs, seeds: int = 1) -> Verdicts:
    """What perfect judges see where every picture is its reference with the prompt's shape."""
    columns = pairs.references.columns() | {"shape": pairs.prompts_shape}
    return Verdicts(**{name: column[:, None].repeat(1, seeds) for name, column in columns.items()})


def simulate(task: verdicts.Task, right: float = 0.8, taken: float = 0.7) -> dict:
    """Stand in for `verdicts.work`: verdicts drawn from the condition's name and the rows, and a grey example."""
    pairs = task.setup.chosen_pairs()[task.rows.start : task.rows.stop]
    rng = np.random.default_rng(make_seed(task.condition.key(), task.rows.start))
    seen = make_verdicts(pairs, task.setup.seeds)
    size = (len(pairs), task.setup.seeds)
    leaks = torch.from_numpy(rng.random(size) > right)
    seen.shape = torch.where(leaks, pairs.references.shape[:, None], seen.shape)
    for name in ("palette", "background", "texture"):
        lost = torch.from_numpy(rng.random(size) > taken)
        setattr(seen, name, (getattr(seen, name) + lost) % len(world.NAMES[name]))
    columns = {name: value.tolist() for name, value in vars(seen).items()}
    picture = pictures.png_base64(world.to_picture(torch.full((3, 8, 8), 0.5)))
    return {**columns, "examples": [picture for row in task.rows if row < verdicts.EXAMPLES]}


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """Run `instantstyle evaluate` with simulated pictures: its exit code, output, and the tasks that it worked on."""

    def run(*words: str, work=simulate, code: int = 0) -> tuple[str, str, list[verdicts.Task]]:
        done = []

        def recorded(task):
            result = work(task)
            done.append(task)
            return result

        monkeypatch.setattr(verdicts, "work", recorded)
        words = ("evaluate", "--model", str(checkpoint), "-o", str(tmp_path / "out"), "--processes", "1", *words)
        assert cli.main(words) == code
        captured = capsys.readouterr()
        return captured.out, captured.err, done

    return run


# --- Conditions and pairs --------------------------------------------------------------------------------------------


def test_conditions_go_through_json_and_keep_their_keys():
    known = [*conditions.headline_conditions(), *(one for c in conditions.curves() for _, one in c.points)]
    for condition in known:
        again = Condition.from_json(json.loads(json.dumps(condition.to_json())))
        assert again.key() == condition.key()
        assert hash(again) == hash(condition)
    listed = Condition("a", target_blocks=["style", "layout"])
    assert listed.key() == Condition("b", target_blocks=("style", "layout")).key()
    assert Condition("a", scale=1).key() == Condition("b", scale=1.0).key()


def test_only_what_decides_the_pictures_is_in_the_key():
    assert Condition("a", "none", scale=0.5).key() == Condition("b", "none").key()
    settings = [
        Condition("a"),
        Condition("a", scale=0.5),
        Condition("a", target_blocks="style"),
        Condition("a", target_blocks={"style": 0.5}),
        Condition("a", content=0.5),
        Condition("a", content="auto"),
        Condition("a", content=0.5, phrasing="{}"),
        Condition("a", "none"),
        Condition("a", "prompt"),
        Condition("a", "img2img", strength=0.5),
        Condition("a", "img2img", strength=0.6),
    ]
    assert len({condition.key() for condition in settings}) == len(settings)


def test_names_tell_conditions_apart():
    headline = [condition.name for condition in conditions.headline_conditions()]
    assert len(set(headline)) == len(headline)
    names = {curve.name for curve in conditions.curves()}
    assert {curve.against for curve in conditions.curves()} <= names | {None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "`method` must be one of none, adapter, prompt, img2img, got 'magic'"),
        ({"scale": math.nan}, "`scale` must be a number"),
        ({"content": "all"}, '`content` must be a number, "auto" or null'),
        ({"method": "prompt", "content": 1.0}, "`content` is removed from what the adapter sees"),
        ({"content": 1.0, "phrasing": "a star"}, "`phrasing` must be a text with"),
        ({"phrasing": "{}"}, "expected `content` beside it"),
        ({"method": "img2img"}, "`strength` is what"),
        ({"strength": 0.5}, "`strength` is what"),
        ({"method": "img2img", "strength": 0}, "`strength` must be above 0"),
    ],
)
def test_conditions_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Condition("a", **arguments)


@pytest.mark.parametrize("split", SPLITS)
def test_references_never_show_what_the_prompt_asks_for(split):
    pairs = sample_pairs(POOL, split)
    assert (pairs.prompts_shape != pairs.references.shape).all()
    both = pairs.prompts_shape * len(world.SHAPES) + pairs.references.shape
    assert len(both.unique()) == len(world.SHAPES) * (len(world.SHAPES) - 1)
    assert pairs.prompt(0) == world.caption(world.SHAPES[int(pairs.prompts_shape[0])])
    assert pairs.content(0) == world.SHAPES[int(pairs.references.shape[0])]


def places(scenes: world.Scenes) -> set[tuple[float, float]]:
    """Return where the figures are, which tells scenes apart."""
    return set(zip(scenes.x.tolist(), scenes.y.tolist(), strict=True))


def test_splits_are_disjoint_and_their_beginnings_always_the_same():
    first, second = (sample_pairs(POOL, split).references for split in SPLITS)
    assert not places(first) & places(second)
    assert places(first[-9:]) <= places(first)
    few, many = sample_pairs(3, "reporting"), sample_pairs(300, "reporting")
    assert torch.equal(few.references.x, many.references.x[:3])
    assert torch.equal(few.prompts_shape, many[:3].prompts_shape)
    with pytest.raises(ValueError, match="`split`"):
        sample_pairs(3, "training")
    with pytest.raises(ValueError, match="from 1 to"):
        sample_pairs(POOL + 1, "reporting")


def test_no_split_holds_a_scene_that_was_trained_on():
    trained = places(data.read_scenes())
    for split in SPLITS:
        assert not places(sample_pairs(POOL, split).references) & trained
    assert places(data.shard_scenes(3)) <= trained


def test_seeds_are_unlike_each_other():
    seeds = {make_seed(split, pair, seed) for split in "ab" for pair in range(50) for seed in range(5)}
    assert len(seeds) == 500


# --- Pictures --------------------------------------------------------------------------------------------------------

KINDS = [
    Condition("none", "none"),
    Condition("plain"),
    Condition("content", target_blocks={"all": 0.5}, content="auto"),
    Condition("prompt", "prompt"),
    Condition("img2img", "img2img", strength=0.5),
]


@pytest.mark.parametrize("condition", KINDS, ids=lambda condition: condition.name)
def test_a_row_of_a_batch_equals_the_pair_alone(session, condition):
    pairs, told = sample_pairs(3, "selection"), []
    batched = pictures.make_pictures(session, condition, pairs, (0, 1), steps=STEPS, batch=4, progress=told.append)
    side = pictures.picture_size(session.pipe)
    assert batched.shape == (3, 2, 3, side, side)
    assert told == [4, 2]
    alone = pictures.make_pictures(session, condition, pairs[2:], (1,), steps=STEPS)
    assert (batched[2, 1] - alone[0, 0]).abs().max() <= PIXEL_TOLERANCE
    for other in (batched[1, 1], batched[2, 0]):
        assert (other - alone[0, 0]).abs().max() > 100 * PIXEL_TOLERANCE


def test_every_condition_starts_from_the_same_noise(session):
    pairs = sample_pairs(2, "selection")
    none, silent = Condition("none", "none"), Condition("silent", scale=0.0)
    made = [pictures.make_pictures(session, one, pairs, (0,), steps=STEPS) for one in (none, silent)]
    assert (made[0] - made[1]).abs().max() <= PIXEL_TOLERANCE
    loud = pictures.make_pictures(session, Condition("plain", scale=2.0), pairs, (0,), steps=STEPS)
    assert (made[0] - loud).abs().max() > 100 * PIXEL_TOLERANCE


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.55, 0.7, 0.9, 1.0])
def test_image_to_image_runs_as_many_steps_as_the_others(session, strength):
    pairs, condition = sample_pairs(1, "selection"), Condition("i", "img2img", strength=strength)
    arguments = pictures.arguments_for(session.pipe, condition, pairs, [0], steps=16)
    assert int(arguments["num_inference_steps"] * strength) == 16


def test_words_of_each_method(session):
    pairs = sample_pairs(2, "selection")
    words = pairs.references.words(1)
    plain = pictures.arguments_for(session.pipe, Condition("a", content=0.5), pairs, [1, 1], STEPS)
    assert plain["prompt"] == [pairs.prompt(1)] * 2
    assert plain["neg_content_prompt"] == [[f"a {words['shape']}"] * 2]
    bare = pictures.arguments_for(session.pipe, Condition("a", content=0.5, phrasing="the {}"), pairs, [1], STEPS)
    assert bare["neg_content_prompt"] == [[f"the {words['shape']}"]]
    named = pictures.arguments_for(session.pipe, Condition("a", "prompt"), pairs, [1], STEPS)
    assert all(words[name] in named["prompt"][0] for name in ("palette", "background", "texture"))
    assert words["shape"] not in named["prompt"][0]
    assert "ip_adapter_image" not in named


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_against_a_hand_calculation():
    pairs = sample_pairs(2, "selection")
    perfect = metrics.score(make_verdicts(pairs, seeds=2), pairs)
    ones = {"content_right", "style", "palette", "background", "texture", "layout_copied"}
    assert {name: values.tolist() for name, values in perfect.items()} == {
        name: [float(name in ones)] * 2 for name in metrics.METRICS
    }

    verdicts = make_verdicts(pairs, seeds=2)
    verdicts.shape[0] = torch.tensor([pairs.references.shape[0], -1])  # leaked; nothing
    verdicts.palette[0, 0] += 1
    verdicts.texture[0] += 1
    verdicts.x[0, 0] += 3
    verdicts.y[0, 0] += 4  # 5 pixels away
    verdicts.size[0, 1] += 3.5
    verdicts.line[1] += torch.tensor([-0.5, 1.0])
    found = metrics.score(verdicts, pairs)
    expected = {
        "content_right": [0, 1],
        "content_leaked": [0.5, 0],
        "unrecognised": [0.5, 0],
        "style": [(1 / 3 + 2 / 3) / 2, 1],
        "palette": [0.5, 1],
        "background": [1, 1],
        "texture": [0, 1],
        "layout_copied": [0, 1],
        "distance": [2.5, 0],
        "line": [0, 0.75],
    }
    assert {name: pytest.approx(values, abs=1e-5) for name, values in expected.items()} == {
        name: values.tolist() for name, values in found.items()
    }
    flat = Verdicts(**{name: value.flatten() for name, value in vars(verdicts).items()})
    assert all((metrics.score(flat, pairs)[name] == found[name]).all() for name in found)


@pytest.mark.parametrize(("moved", "copied"), [(3.9, 1.0), (4.1, 0.0)])
def test_layout_is_copied_within_four_pixels(moved, copied):
    pairs = sample_pairs(5, "selection")
    verdicts = make_verdicts(pairs)
    verdicts.x += moved
    assert (metrics.score(verdicts, pairs)["layout_copied"] == copied).all()
    verdicts = make_verdicts(pairs)
    verdicts.size += moved - 1
    assert (metrics.score(verdicts, pairs)["layout_copied"] == copied).all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, count, truth = np.random.default_rng(0), 120, 0.3
    trials, covered, too_narrow = 400, 0, 0
    for _ in range(trials):
        # Pictures of a pair are alike, so pictures are not independent, but pairs are.
        pictures = np.repeat(rng.random((count, 1)) < truth, 3, axis=1).astype(float)
        found = metrics.estimate({"style": pictures.mean(axis=1)})["style"]
        covered += found.low <= truth <= found.high
        wrong = metrics.estimate({"style": pictures.flatten()})["style"]
        too_narrow += wrong.low <= truth <= wrong.high
    assert 0.92 <= covered / trials <= 0.98
    assert too_narrow / trials < 0.85


def test_intervals_of_means_are_the_normal_ones():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    found = metrics.estimate({"distance": values})["distance"]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert metrics.estimate({"distance": values})["distance"] == found


def test_differences_are_within_pairs():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 300)
    first, second = {"style": hard + 1}, {"style": hard + rng.normal(0, 0.1, 300)}
    found = metrics.difference(first, second)["style"]
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.05
    shuffled = metrics.difference(first, {"style": rng.permutation(second["style"])})["style"]
    assert shuffled.high - shuffled.low > 2


def test_heights_on_a_curve_are_numpys():
    rng = np.random.default_rng(4)
    x, xs, ys = rng.random(200) * 1.4 - 0.2, rng.random((200, 5)), rng.random((200, 5))
    ordered = [np.interp(one, np.sort(a), b[np.argsort(a)]) for one, a, b in zip(x, xs, ys, strict=True)]
    assert np.allclose(metrics.on_curve(x, xs, ys), ordered)
    flat = np.full((1, 3), 0.5)
    assert np.isfinite(metrics.on_curve(np.array([0.5]), flat, flat)).all()


def test_gains_at_equal_style():
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.05, 300)
    curve = [{"style": level + noise, "content_right": 1 - level + noise} for level in (0.2, 0.5, 0.8)]
    on_it = {"style": 0.35 + noise, "content_right": 0.65 + noise}
    above = {"style": 0.35 + noise, "content_right": 0.85 + noise}
    assert metrics.at_equal_style(on_it, curve)["content_right"].mean == pytest.approx(0, abs=1e-9)
    found = metrics.at_equal_style(above, curve)["content_right"]
    assert found.mean == pytest.approx(0.2)
    assert found.low <= 0.2 <= found.high
    assert found.low > 0.1
    assert metrics.at_equal_style({"style": 0.9 + noise, "content_right": noise}, curve) is None


def test_gains_are_over_the_strengths_that_still_bring_style():
    """A curve that folds back, so that more strength brings less style, is not to be beaten at its wrong end."""
    ones = np.ones(50)
    curve = [{"style": s * ones, "content_leaked": leak * ones} for s, leak in ((0.6, 0.02), (0.65, 0.16))]
    point = {"style": 0.62 * ones, "content_leaked": 0.076 * ones}
    folded = [*curve, {"style": 0.6 * ones, "content_leaked": 0.9 * ones}]
    for one in (curve, folded):
        assert metrics.at_equal_style(point, one)["content_leaked"].mean == pytest.approx(0)
    assert metrics.at_equal_style(point, [curve[0], folded[-1], curve[1]])["content_leaked"].mean < -0.2


@pytest.mark.parametrize(("count", "end"), [(512, 0.00583), (24, 0.117)])
def test_a_share_of_none_or_all_has_an_interval_too(count, end):
    """The textbook's: 1 in 20 samples of `count` shows none of a share of `end`."""
    none, every = np.zeros(count), np.ones(count)
    found = metrics.estimate({"content_leaked": none, "content_right": every, "distance": none})
    assert (found["content_leaked"].mean, found["content_leaked"].low) == (0, 0)
    assert found["content_leaked"].high == pytest.approx(end, rel=0.01)
    assert (1 - found["content_leaked"].high) ** count == pytest.approx(0.05)
    assert found["content_right"].low == pytest.approx(1 - end, rel=0.01)
    assert found["content_right"].high == 1
    assert found["distance"].high == 0
    assert metrics.difference({"content_leaked": none}, {"content_leaked": none})["content_leaked"].high == 0


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_pictures_from_the_command_line(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tiny.SAMPLING, "steps", STEPS)
    path = tmp_path / "conditions.json"
    path.write_text(json.dumps([{"name": "none", "method": "none"}, {"name": "style", "target_blocks": "style"}]))
    words = ["--pairs", "3", "--seeds", "2", "--processes", "1", "--conditions", str(path), "-o", str(tmp_path)]
    assert cli.main(["evaluate", "--model", str(checkpoint), *words]) == 0
    written = capsys.readouterr().out.splitlines()[-3:]
    assert [Path(line).name for line in written] == ["evaluation.json", "evaluation.png", "evaluation.html"]
    found = json.loads((tmp_path / "evaluation.json").read_text())["conditions"]
    assert [row["condition"]["name"] for row in found["rows"]] == ["none", "style"]
    assert set(found["rows"][0]["metrics"]) == set(metrics.METRICS)

    condition, setup = Condition("none", "none"), found["setup"]
    made = pictures.make_pictures(
        Session(Machine(model=str(checkpoint))), condition, sample_pairs(3, "reporting"), (0, 1), steps=setup["steps"]
    )
    expected = judges.Judges.load(checkpoint)(made.flatten(0, 1))
    (saved,) = [
        json.loads(one.read_text())["verdicts"]
        for one in (tmp_path / "verdicts").iterdir()
        if json.loads(one.read_text())["condition"]["name"] == "none"
    ]
    assert saved["palette"] == expected.palette.reshape(3, 2).tolist()
    assert np.allclose(saved["x"], expected.x.reshape(3, 2), atol=1e-3)


def test_numbers_are_those_of_the_verdicts(run, tmp_path):
    out, _, tasks = run("--pairs", "40", "--seeds", "2")
    assert {len(task.rows) for task in tasks} == {16, 8}
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["conditions"]
    plain = next(row for row in found["rows"] if row["condition"]["name"] == "plain")
    parts = [simulate(task) for task in tasks if task.condition.name == "plain"]
    pairs = sample_pairs(40, "reporting")
    right = (np.concatenate([part["shape"] for part in parts]) == np.asarray(pairs.prompts_shape)[:, None]).mean()
    assert plain["metrics"]["content_right"]["mean"] == pytest.approx(right, abs=1e-5)
    assert plain["above_baseline"]["style"] == {"mean": 0, "low": 0, "high": 0}
    assert f"plain {100 * right:.1f} (" in " ".join(out.split())


def test_python_finds_what_the_command_line_does(run, tmp_path, monkeypatch):
    out, _, tasks = run("--pairs", "12", "--seeds", "1")
    found = evaluate(conditions.headline_conditions(), tmp_path / "out", pairs=12, seeds=1)
    assert tables.evaluation_text(found) in out
    assert found.baseline == "plain"
    monkeypatch.setattr(verdicts, "work", lambda task: simulate(task, right=0.5))
    other = evaluate(conditions.headline_conditions(), tmp_path, pairs=12, seeds=1)
    assert tables.evaluation_text(other) not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"model": "missing"}, "`model`: missing has no judges"),
        ({"pairs": POOL + 1}, f"`pairs` must be from 1 to {POOL}"),
        ({"split": "training"}, "`split` must be one of"),
        ({"curves": [conditions.Curve("c", (("1", Condition("b", target_blocks="stile")),), None)]}, "condition 'b'"),
    ],
)
def test_python_is_told_its_own_arguments(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate([Condition("a")], tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


def test_a_second_run_makes_nothing_again(run, tmp_path):
    first = run("--quick")
    assert len(first[2]) == 4
    before = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    second = run("--quick")
    assert second[2] == []
    assert second[0] == first[0]
    after = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert after | {"written": ""} == before | {"written": ""}
    assert len(run("--quick", "--split", "selection")[2]) == 4
    assert len(run("--pairs", "23", "--seeds", "1")[2]) == 9


def test_another_checkpoint_is_judged_anew(checkpoint, tmp_path):
    before = evaluation.digest_of(checkpoint)
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert evaluation.digest_of(copy) == before
    setup = [results.Setup(str(folder), before, "reporting", 2, 1, 16, 3.5) for folder in (checkpoint, copy)]
    assert setup[0].key(conditions.PLAIN) == setup[1].key(conditions.PLAIN)
    (copy / "model_index.json").write_text((copy / "model_index.json").read_text() + "\n")
    assert evaluation.digest_of(copy) != before


def test_verdicts_are_kept_by_all_that_they_were_made_with():
    setup = results.Setup("here", "a", "reporting", 2, 1, 16, 3.5)
    changes = {"fingerprint": "b", "split": "selection", "pairs": 3, "seeds": 2, "steps": 17, "guidance": 4.0}
    assert {"folder", *changes} == {field.name for field in dataclasses.fields(setup)}
    others = [dataclasses.replace(setup, **{name: value}) for name, value in changes.items()]
    keys = {one.key(conditions.PLAIN) for one in (setup, *others)} | {setup.key(conditions.STYLE)}
    assert len(keys) == 2 + len(others)
    assert dataclasses.replace(setup, folder="there").key(conditions.PLAIN) == setup.key(conditions.PLAIN)


def test_an_interrupt_loses_only_the_condition_at_work(run, tmp_path):
    begun = []

    def interrupted(task):
        begun.append(task)
        if len(begun) == 6:
            raise KeyboardInterrupt
        return simulate(task)

    words = ("--pairs", "64", "--seeds", "1")  # two tasks for each condition
    run(*words, work=interrupted, code=cli.INTERRUPTED)
    assert len(list((tmp_path / "out" / "verdicts").iterdir())) == 2
    assert not (tmp_path / "out" / "evaluation.json").exists()
    names = [one.name for one in conditions.headline_conditions()]
    assert [task.condition.name for task in run(*words)[2]] == [name for name in names[2:] for _ in range(2)]


@pytest.fixture
def interruptible():
    """Heed interrupts, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_two_processes_answer_in_order_and_leave_interrupts_to_the_first(interruptible):
    with verdicts.mapping(2) as each:
        assert list(each(operator.neg, range(20))) == [-number for number in range(20)]
        assert list(each(signal.getsignal, [signal.SIGINT] * 4)) == [signal.SIG_IGN] * 4
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


# --- The report ------------------------------------------------------------------------------------------------------


def test_curves_and_a_page_that_needs_no_network(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "CURVE_PAIRS", 32)
    out, _, _ = run("--curves", "--pairs", "12", "--seeds", "1")
    assert "style named in the prompt" in out
    page = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(sources) == 1 + verdicts.EXAMPLES * (1 + len(conditions.headline_conditions()))
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for source in sources:
        page = page.replace(source, "")
    assert not any(outside in page for outside in ("http:", "https:", "//", "<script", "<link", "@import", "url("))
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["curves"]["lines"]
    assert [line["name"] for line in found] == [curve.name for curve in conditions.curves()]
    by_name = {line["name"]: line for line in found}
    assert by_name["style blocks - content"]["against"] == "style blocks"
    assert by_name["plain"]["points"][0]["above_the_other_at_equal_style"] is None
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_names_cannot_break_the_page(run, tmp_path):
    path = tmp_path / "conditions.json"
    path.write_text(json.dumps([{"name": "<b>&plain"}]))
    run("--quick", "--conditions", str(path))
    page = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;plain" in page
    assert "<b>&plain" not in page


def test_cells():
    share, length = metrics.Estimate(0.5, 0.25, 0.7549), metrics.Estimate(-1.234, -2.0, 0.5)
    assert tables.cell(share, "style") == "50.0 (25.0 to 75.5)"
    assert tables.cell(share, "style", sign=True) == "+50.0 (+25.0 to +75.5)"
    assert tables.cell(length, "distance") == f"{tables.MINUS}1.23 ({tables.MINUS}2.00 to 0.50)"


def crowd() -> results.Evaluation:
    """Make curves whose points lie on top of each other, and one point that stands alone."""
    rng = np.random.default_rng(0)

    def point(label: str, style: float, leaked: float) -> results.Point:
        values = {"style": style, "content_leaked": leaked, "content_right": 1 - leaked}
        found = {name: metrics_at(value) for name, value in values.items()}
        return results.Point(label, Condition(label), found, None)

    def metrics_at(value: float) -> metrics.Estimate:
        return metrics.Estimate(value, value - 0.01, value + 0.01)

    curves = [
        results.Line(f"curve {n}", None, [point(f"{x:.2f}", 0.9 + 0.1 * x, 0.05 * y) for x, y in rng.random((6, 2))])
        for n in range(6)
    ]
    setup = results.Setup("here", "a", "reporting", 2, 1, 16, 3.5)
    return results.Evaluation(
        setup, "plain", [], setup, [results.Line("alone", None, [point("far", 0.1, 0.5)]), *curves]
    )


def label_boxes() -> list[list]:
    """Draw the crowd, and return the boxes of the labels in each half of the plot; the lone point has its label."""
    figure = plot.draw_figure(crowd())
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.texts[0].get_text() == "far"
    return [[label.get_window_extent() for label in axes.texts] for axes in figure.axes]


def test_no_label_of_the_plot_covers_another(monkeypatch):
    """However crowded it is; without a look at what is there already they would."""
    for boxes in label_boxes():
        assert 5 < len(boxes) < 37
        assert not any(one.count_overlaps(boxes[:n]) for n, one in enumerate(boxes))
    with monkeypatch.context() as patch:
        patch.setattr(BboxBase, "count_overlaps", lambda *_: 0)
        careless = label_boxes()
    assert all(any(one.count_overlaps(boxes[:n]) for n, one in enumerate(boxes)) for boxes in careless)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["stabilityai/stable-diffusion-xl-base-1.0", ".", "missing"])
def test_a_model_without_judges_is_refused(model, tmp_path, capsys):
    assert cli.main(["evaluate", "--model", model, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"--model: {model} has no judges" in error
    assert "`instantstyle probe` works on any model" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--curves"], "--quick chooses its own"),
        (["--quick", "--pairs", "3"], "--quick chooses its own"),
        (["--pairs", "0"], "above 0"),
        (["--pairs", "5000"], "from 1 to 4096"),
        (["--split", "training"], "reporting"),
        (["--conditions", "missing.json"], "missing.json"),
    ],
)
def test_options_that_cannot_be_are_refused(run, words, message):
    _, error, tasks = run(*words, code=2)
    assert message in error
    assert error.count("\n") == 1
    assert tasks == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not JSON"),
        ("{}", "must hold a list"),
        ("[]", "must hold a list"),
        ("[1]", 'an object with a "name"'),
        ('[{"name": "a", "blocks": "style"}]', "'blocks' is unknown; expected some of name, method"),
        ('[{"name": "a"}, {"name": "a"}]', "a name twice"),
        ('[{"name": "a", "scale": "1"}]', '"scale" must be a number'),
        ('[{"name": "a", "target_blocks": "stile"}]', "condition 'a': \"target_blocks\" names 'stile'"),
        ('[{"name": "a", "target_blocks": {"style": "x"}}]', "condition 'a'"),
        ('[{"name": "a", "target_blocks": 3}]', "condition 'a'"),
    ],
)
def test_wrong_conditions_are_refused(run, tmp_path, content, message):
    path = tmp_path / "conditions.json"
    path.write_text(content)
    _, error, tasks = run("--quick", "--conditions", str(path), code=2)
    assert message in error
    assert error.count("\n") == 1
    assert tasks == []


def test_without_matplotlib_nothing_is_computed(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    _, error, tasks = run("--quick", code=2)
    assert 'pip install "instantstyle[evaluate]"' in error
    assert tasks == []


def test_help_needs_no_matplotlib(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        assert not name.startswith("matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "--curves" in capsys.readouterr().out
