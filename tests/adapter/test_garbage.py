import gc

from flexgen_helm.adapter.garbage import RARELY, rare_collections


def test_collections_are_rare_for_a_while():
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold()[0] == RARELY
    assert gc.get_threshold() == before
