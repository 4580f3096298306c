from flexgen_helm.adapter.progress import SuiteProgress


def test_one_bar_for_all_deployments(capsys):
    with SuiteProgress({"a": 2, "b": 3}) as bar:
        for deployment, count in (("a", 2), ("b", 1)):
            bar.begin(deployment, count)
            for _ in range(count):
                bar.update()
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("b (2 of 2): 100%")
    assert "3/3" in last  # two of b were known


def test_what_is_known_does_not_count(capsys):
    with SuiteProgress({"a": 10, "b": 10}) as bar:
        bar.begin("a", 4)
    assert "0/14" in capsys.readouterr().err


def test_a_single_deployment_is_not_numbered(capsys):
    with SuiteProgress({"a": 1}) as bar:
        bar.begin("a", 1)
    assert "(1 of 1)" not in capsys.readouterr().err


def test_nothing_is_shown_where_nothing_is_computed(capsys):
    with SuiteProgress({"a": 2}) as bar:
        bar.begin("a", 0)
        bar.update()
    assert capsys.readouterr().err == ""
