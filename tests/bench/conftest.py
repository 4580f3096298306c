"""One real comparison on a tiny checkpoint, for all tests that need results of HELM."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from flexgen_helm.bench.checkpoint import SHAPES, random_checkpoint
from flexgen_helm.bench.clients import our_client, peer_client
from flexgen_helm.bench.helm_run import HelmRun, Site, Size, timed_run
from flexgen_helm.bench.suites import SUITES, TOKENIZER, stage_data
from tests.conftest import SHARED_DATA


@pytest.fixture(scope="session")
def timed_pair(tmp_path_factory):
    """Theirs and ours on two summaries, at the same time: nothing is measured here."""
    if not (SHARED_DATA / TOKENIZER).is_dir():
        pytest.skip("the data to run HELM's suites offline is not here")
    directory = tmp_path_factory.mktemp("bench")
    shape = SHAPES["tiny"]
    site = Site(
        data=SHARED_DATA,
        checkpoint=random_checkpoint(shape, tokenizer=SHARED_DATA / TOKENIZER, parent=directory),
        positions=shape.max_position_embeddings,
        directory=directory,
    )
    suite = SUITES["summarization"]
    stage_data(suite, data=site.data, output=site.output)  # once, not by both at the same time
    clients = [peer_client("float32-1"), our_client(site.checkpoint, dtype="float32")]

    def run(number):
        return timed_run(
            HelmRun(
                suite=suite,
                client=clients[number],
                size=Size(instances=2, train_trials=1),
                stage="timed",
                number=number,
            ),
            site,
        )

    with ThreadPoolExecutor() as pool:
        return list(pool.map(run, range(2)))
