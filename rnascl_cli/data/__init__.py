"""Images in [0, 1] and their labels: data sets, subsets, batches and augmentation on tensors."""

from rnascl_cli.data.augment import Augment, augmentation
from rnascl_cli.data.batch_sharding import BatchShard, Parts, undivided
from rnascl_cli.data.images import Batch, ImageSet, batch_count, batches, ordered_batches
from rnascl_cli.data.load import Data, load_data

__all__ = [
    "Augment",
    "Batch",
    "BatchShard",
    "Data",
    "ImageSet",
    "Parts",
    "augmentation",
    "batch_count",
    "batches",
    "load_data",
    "ordered_batches",
    "undivided",
]
