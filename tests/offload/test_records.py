import torch

from flexgen_helm.offload.disk import ALIGNMENT
from flexgen_helm.offload.records import RecordLayout


def test_records_are_aligned():
    layout = RecordLayout.of([torch.zeros(5), torch.zeros(0, 3), torch.zeros(7, dtype=torch.uint8)])
    assert layout.num_bytes == ALIGNMENT
    first, none, last = layout.views(torch.zeros(ALIGNMENT, dtype=torch.uint8))
    assert (first.shape, none.shape, last.shape) == ((5,), (0, 3), (7,))
    assert last.data_ptr() - first.data_ptr() == 64
