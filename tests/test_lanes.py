"""The order of a stream, against what the words say: every image once, whatever the processes and the start."""

import numpy as np
import pytest

from modeling_mae.data.serve.lanes import BLOCK_UNITS, LANES, LaneOrder
from modeling_mae.data.serve.order import MicroBatches
from modeling_mae.errors import UserError


UNEVEN = (1, 500, 3, 0, 77, 2, 2, 190, 41, 60)


@pytest.mark.parametrize("trial", range(30))
def test_every_image_once_an_epoch_but_for_another_tail_each_time(trial):
    random = np.random.default_rng(trial)
    counts = tuple(random.integers(0, 50, random.integers(2, 40)).tolist())
    order = LaneOrder(counts, int(random.integers(1, sum(counts))), seed=trial)
    seen = []
    for epoch in range(2):
        updates = [order.images_of(epoch * order.updates_per_epoch + i) for i in range(order.updates_per_epoch)]
        assert {e for e, _ in updates} == {epoch}
        assert {len(indices) for _, indices in updates} == {order.total_batch_size}
        seen.append(np.concatenate([indices for _, indices in updates]).tolist())
        assert len(set(seen[epoch])) == len(seen[epoch]) > sum(counts) - order.total_batch_size
        assert set(seen[epoch]) <= set(range(sum(counts)))
    assert seen[0] != seen[1] or len(seen[0]) < 3


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_what_one_process_takes(processes):
    alone = list(MicroBatches(LaneOrder(UNEVEN, 64, 3), 8, range(20)))
    shares = [list(MicroBatches(LaneOrder(UNEVEN, 64, 3), 8, range(20), p, processes)) for p in range(processes)]
    assert [batch for turn in zip(*shares, strict=True) for batch in turn] == alone


def test_going_on_needs_only_the_update():
    whole = [LaneOrder(UNEVEN, 48, 5).images_of(update)[1].tolist() for update in range(60)]
    for start in (1, 17, 18, 44):  # an order that has seen nothing before
        order = LaneOrder(UNEVEN, 48, 5)
        assert [order.images_of(update)[1].tolist() for update in range(start, 60)] == whole[start:]


def test_a_process_reads_its_own_units_and_few_at_a_time():
    order = LaneOrder((10,) * 640, 64, seed=0)  # 100 updates, 40 units a lane
    units = [
        [{i // 10 for _, indices in MicroBatches(order, 16, range(100), p, 4) for i in indices}] for p in range(4)
    ]
    for p in range(4):
        for q in range(p):
            assert len(units[p][0] & units[q][0]) <= BLOCK_UNITS  # the block at the border of two lanes
    in_ten_updates = {i // 10 for update in range(10) for i in order.images_of(update)[1]}
    assert len(in_ten_updates) <= LANES * 2 * BLOCK_UNITS
    assert len({i // 10 for i in order.images_of(5)[1]}) > LANES  # an update mixes many units


def test_a_batch_larger_than_the_stream_is_refused():
    with pytest.raises(UserError, match="total_batch_size 9 is more than the 8 images"):
        LaneOrder((5, 3), 9, 0)
