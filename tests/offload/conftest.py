import pytest

from flexgen_helm.offload.disk import DiskReader


@pytest.fixture
def reader():
    reader = DiskReader()
    yield reader
    reader.close()
