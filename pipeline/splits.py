"""Which labels are trained on, and which are kept for validation and calibration."""

import math

from pipeline.plan import first_labels
from pipeline.records import Split
from pipeline.seeds import Stream, generator, seed_for
from pipeline.settings.campaign import CampaignSettings
from pipeline.settings.labels import LabelSettings

BLOCK = 10
"""Labels after the first ones are split in blocks of this many."""


def split_in(number: int, settings: CampaignSettings) -> Split:
    """The split of the ``number``-th label of a campaign; in a stream the labels of the first model hold one of each."""
    return split_of(number, campaign_seed=settings.seed, settings=settings.labels, first=first_labels(settings))


def split_of(number: int, *, campaign_seed: int, settings: LabelSettings, first: int | None = None) -> Split:
    """The split of the ``number``-th label asked for (from 0, failed ones counted).

    A pure function of its arguments, so it does not depend on the order in which labels arrive, nor on a resume. Within the
    ``first`` labels (None: the initial ones), and within each block of 10 after them, the shares hold as exactly as whole
    numbers allow, at seeded places; the first labels hold at least one of each. The first label of all, a start structure as it
    was given, is trained on: in a perfect crystal its forces vanish, and a validation set of nothing else would judge nothing.
    """
    splits = settings.splits
    first = first or settings.initial
    if number < first:
        if number == 0:
            return Split.TRAIN
        block, place, size = 0, number - 1, first - 1
        validation = max(1, math.floor(splits.validation * first))
        calibration = max(1, math.floor(splits.calibration * first))
    else:
        block, place, size = 1 + (number - first) // BLOCK, (number - first) % BLOCK, BLOCK
        validation = _in_block(block, splits.validation)
        calibration = _in_block(block, splits.calibration)
    rank = int(generator(seed_for(campaign_seed, Stream.SPLIT, 0, block)).permutation(size)[place])
    if rank < validation:
        return Split.VALIDATION
    return Split.CALIBRATION if rank < validation + calibration else Split.TRAIN


def _in_block(block: int, share: float) -> int:
    """How many of the ``block``-th ten, so that the sum over blocks follows the share."""
    return math.floor(block * BLOCK * share + 1e-9) - math.floor((block - 1) * BLOCK * share + 1e-9)
