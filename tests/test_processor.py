from flexgen_helm.processor import cpu_model, num_cores


def test_cpu_model_is_read_where_linux_tells_it(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n\nmodel name\t: A CPU @ 2 GHz\n")
    assert cpu_model(file) == "A CPU @ 2 GHz"
    assert cpu_model(tmp_path / "elsewhere")


def test_a_process_has_cores():
    assert num_cores() >= 1
