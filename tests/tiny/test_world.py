"""The drawn world: what a scene says is what its picture shows, and captions say only what is true."""

import random

import pytest
import torch

from instantstyle.tiny import world


def scenes(count: int = 64, seed: int = 0) -> world.Scenes:
    return world.sample(count, torch.Generator().manual_seed(seed))


def test_pictures_repeat_and_rows_do_not_depend_on_their_neighbours():
    batch = scenes()
    pictures = world.draw(batch)
    assert torch.equal(world.draw(scenes()), pictures)
    assert (world.draw(batch[5:6])[0] - pictures[5]).abs().max() < 1e-5
    assert (world.draw(batch[6:7])[0] - pictures[5]).abs().max() > 0.1
    assert pictures.shape == (64, 3, 64, 64)
    assert 0 <= pictures.min()
    assert pictures.max() <= 1


def test_every_attribute_can_be_seen():
    batch = scenes()
    pictures = world.draw(batch)
    changes = {name: (getattr(batch, name) + 1) % len(words) for name, words in world.NAMES.items()}
    changes |= {"line": batch.line + 1, "x": batch.x + 2, "y": batch.y + 2, "size": batch.size - 3}
    for name, value in changes.items():
        changed = world.draw(batch.replace(**{name: value}))
        assert ((changed - pictures).abs().amax((1, 2, 3)) > 0.05).all(), name


def test_turning_moves_all_but_the_round_shapes():
    batch = scenes()
    turned = world.draw(batch.replace(angle=batch.angle + 0.3)) - world.draw(batch)
    moved = turned.abs().amax((1, 2, 3)) > 0.1
    round_ones = torch.tensor([world.SHAPES[i] in ("circle", "ring") for i in batch.shape])
    assert torch.equal(moved, ~round_ones)


def test_the_background_has_its_colour_up_to_the_frame():
    batch = scenes(256).replace(shape=torch.zeros(256, dtype=torch.long))  # circles, which have no corners to cut off
    pictures = world.draw(batch)
    colours = torch.tensor(list(world.BACKGROUNDS.values())) / 255
    frame = torch.cat([pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1]], dim=-1)
    assert (frame - colours[batch.background][:, :, None]).abs().max() < 0.01
    assert (frame - colours[batch.background.roll(1)][:, :, None]).abs().max() > 0.1


def test_a_plain_figure_has_its_palette_in_the_middle():
    batch = scenes(256).replace(shape=torch.zeros(256, dtype=torch.long), texture=torch.zeros(256, dtype=torch.long))
    rows = torch.arange(256)
    middle = world.draw(batch)[rows, :, batch.y.long(), batch.x.long()]
    colours = torch.tensor(list(world.PALETTES.values())) / 255
    assert (middle - colours[batch.palette]).abs().max() < 0.01


@pytest.mark.parametrize("shape", world.SHAPES)
def test_distances_are_distances(shape):
    """The slope of a distance is 1, but for the few points that are as near to two sides."""
    field = world.distance_fields()[world.SHAPES.index(shape)]
    step = 2 * world.FIELD_EXTENT / (world.FIELD_POINTS - 1)
    down, across = torch.gradient(field, spacing=step)
    slope = torch.hypot(down, across)
    assert ((slope - 1).abs() < 0.05).float().mean() > 0.95
    assert field[0, 0] > 0
    assert field.min() < -0.15


def test_shapes_fit_the_frame_and_fill_it_alike():
    batch = scenes(512)
    assert ((batch.x - batch.size > 0) & (batch.x + batch.size < world.PIXELS)).all()
    inside = (world.distance_fields() < 0).float().mean((1, 2)) * (2 * world.FIELD_EXTENT) ** 2
    assert inside.max() / inside.min() < 2.5


def test_larger_pictures_show_the_same():
    batch = scenes(8)
    large = torch.nn.functional.avg_pool2d(world.draw(batch, 256), 4)
    assert (large - world.draw(batch)).abs().mean() < 0.01


def test_captions_say_what_is_true_in_known_words():
    chance = random.Random(0)
    batch = scenes()
    for row in range(len(batch)):
        words = batch.words(row)
        text = world.phrase(chance, **words)
        assert set(words.values()) <= set(text.split())
        assert world.unknown_words(text) == []
        left_out = world.phrase(chance, words["shape"]).split()
        assert not {words[name] for name in ("palette", "background", "texture")} & set(left_out)
    assert world.caption("star") == "a star"
    assert world.caption("star", palette="orange") == "an orange star"
    assert world.caption("star", "red", "sky", "striped") == "a red striped star on sky"


def test_a_shape_without_an_outline_is_refused():
    with pytest.raises(ValueError, match="no outline is known for 'boat'"):
        world.outline("boat")
