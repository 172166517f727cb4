"""Which image comes when, against numpy's permutation dealt by hand."""

import re

import numpy as np
import pytest

from modeling_mae.data.serve.order import MicroBatches, Order, split_batch
from modeling_mae.errors import UserError


def dealt_by_hand(num_images, total, batch_size, seed, updates, processes):
    """For each process its micro-batches: an update's images cut into micro-batches, dealt one by one in turn."""
    hands = [[] for _ in range(processes)]
    updates_per_epoch = num_images // total
    for update in updates:
        epoch = update // updates_per_epoch
        permutation = np.random.default_rng([seed, epoch]).permutation(num_images).tolist()
        start = (update - epoch * updates_per_epoch) * total
        images = permutation[start : start + total]
        cards = [images[first : first + batch_size] for first in range(0, total, batch_size)]
        for number, card in enumerate(cards):
            hands[number % processes].append((epoch, card))
    return hands


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_micro_batches_are_those_dealt_by_hand(processes, batch_size):
    expected = dealt_by_hand(50, 16, batch_size, 7, range(8), processes)
    order = Order(50, 16, seed=7)
    for process_index in range(processes):
        batches = MicroBatches(order, batch_size, range(8), process_index, processes)
        assert list(batches) == expected[process_index]
        assert len(batches) == len(expected[process_index]) == 8 * 16 // (batch_size * processes)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_every_update(processes):
    order = Order(96, 16, seed=0)
    shares = [list(MicroBatches(order, 4, range(12), rank, processes)) for rank in range(processes)]
    micro_steps = 16 // (4 * processes)
    for update in range(12):
        epoch, images = order.images_of(update)
        of_update = [batch for share in shares for batch in share[update * micro_steps : (update + 1) * micro_steps]]
        assert sorted(i for _, indices in of_update for i in indices) == sorted(images.tolist())
        assert {e for e, _ in of_update} == {epoch}


def test_every_image_once_an_epoch():
    batches = list(MicroBatches(Order(100, 20, seed=0), 10, range(10)))
    assert [len(indices) for _, indices in batches] == [10] * 20
    for epoch in (0, 1):
        of_epoch = batches[10 * epoch : 10 * epoch + 10]
        assert {e for e, _ in of_epoch} == {epoch}
        assert sorted(i for _, indices in of_epoch for i in indices) == list(range(100))
    assert batches[0][1] != batches[10][1]


def test_going_on_needs_only_the_update():
    order = Order(100, 20, seed=0)
    batches = list(MicroBatches(order, 10, range(10)))
    assert list(MicroBatches(order, 10, range(7, 10))) == batches[14:]
    assert list(MicroBatches(order, 10, range(10, 10))) == []


def test_each_seed_has_its_own_order():
    assert Order(100, 20, seed=1).images_of(0)[1].tolist() != Order(100, 20, seed=0).images_of(0)[1].tolist()


def test_every_epoch_leaves_out_other_images():
    order = Order(50, 16, seed=0)
    assert order.updates_per_epoch == 3
    left_out = []
    for epoch in (0, 1):
        images = np.concatenate([order.images_of(3 * epoch + place)[1] for place in range(3)])
        assert len(set(images.tolist())) == 48
        left_out.append(set(range(50)) - set(images.tolist()))
    assert left_out[0] != left_out[1]


def test_batches_that_cannot_be():
    with pytest.raises(UserError, match="total_batch_size 200 is more than the 100 images"):
        Order(100, 200, seed=0)
    with pytest.raises(UserError, match="total_batch_size 20 is not a multiple of 1 processes x .* 7 = 7"):
        MicroBatches(Order(100, 20, seed=0), 7, range(1))
    with pytest.raises(UserError, match="total_batch_size 20 is not a multiple of 4 processes x .* 10 = 40"):
        MicroBatches(Order(100, 20, seed=0), 10, range(1), 0, 4)


@pytest.mark.parametrize("total, per_device, processes", [(4096, 64, 8), (256, 256, 1), (96, 4, 3)])
def test_split_batch(total, per_device, processes):
    assert split_batch(total, per_device, processes) * per_device * processes == total


@pytest.mark.parametrize("total, per_device, processes", [(256, 256, 2), (4096, 64, 3), (100, 64, 1), (10, 64, 8)])
def test_split_batch_names_numbers_that_work(total, per_device, processes):
    with pytest.raises(UserError) as error:
        split_batch(total, per_device, processes)
    text = str(error.value)
    assert str(total) in text and str(per_device) in text and str(processes) in text
    remedy = text.split("nearest that work")[1]
    totals = [int(n) for n in re.findall(r"\d+", remedy.split("--per_device")[0])]
    devices = [int(n) for n in re.findall(r"--per_device_train_batch_size (\d+)", remedy)]
    at_once = per_device * processes
    assert totals and all(n % at_once == 0 and abs(n - total) < at_once for n in totals)
    # The nearest of all that divide, by trying every one.
    fits = [n for n in range(1, total + 1) if total % (n * processes) == 0]
    assert [abs(n - per_device) for n in devices] == ([min(abs(n - per_device) for n in fits)] if fits else [])


@pytest.mark.parametrize("processes", [1, 2])
def test_repeats_stand_side_by_side_in_one_micro_batch(processes):
    """An update of 16 images with 4 crops each has 4 of the permutation's images; a pass has 12 updates of them."""
    hands = dealt_by_hand(50, 4, 2, 7, range(30), processes)
    expected = [[(epoch, [i for i in card for _ in range(4)]) for epoch, card in hand] for hand in hands]
    order = Order(50, 16 // 4, seed=7)
    for process_index in range(processes):
        batches = MicroBatches(order, 8, range(30), process_index, processes, repeats=4)
        assert list(batches) == expected[process_index] and len(batches) == 30 * 2 // processes
        assert (
            list(MicroBatches(order, 8, range(13, 30), process_index, processes, 4))
            == list(batches)[13 * 2 // processes :]
        )
    with pytest.raises(UserError, match="batch of 8 images is not a multiple of repeated_augmentation 3"):
        MicroBatches(Order(50, 8, seed=0), 8, range(1), repeats=3)
    with pytest.raises(UserError, match="total_batch_size 16 is not a multiple of"):
        MicroBatches(order, 12, range(1), repeats=4)
