"""What a file of a cluster may say, and what is refused before anything starts."""

import pytest
import yaml

from rtp_jax.errors import InvalidArgument
from rtp_jax.serving.cluster.controller import flags, router_launches
from rtp_jax.serving.cluster.spec import Resources, Restarts, read_spec

GROUP = {"name": "w", "count": 2}
FILE = {"model": "rtp-tiny", "groups": [GROUP]}


def read(tmp_path, content):
    path = tmp_path / "demo.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return read_spec(path)


def test_the_shortest_file(tmp_path):
    spec = read(tmp_path, FILE)
    assert (spec.name, spec.model, spec.backend) == ("demo", "rtp-tiny", "local")
    assert (spec.groups[0].role, spec.groups[0].count) == ("both", 2)
    assert spec.groups[0].resources == Resources(cpus=1.0, gpus=0, memory=0)
    assert spec.routers.ports == (50050,)
    assert spec.restarts == Restarts()


def test_everything_that_can_be_said(tmp_path):
    content = {
        "name": "big",
        "model": "rtp-tiny",
        "backend": "ray",
        "ray": {"address": "auto", "insecure": True},
        "options": {"max_num_seqs": 8, "page_size": 16},
        "groups": [
            {"name": "p", "role": "prefill", "count": 0, "cpus": 0.5, "memory": 1 << 30},
            {"name": "d", "role": "decode", "gpus": 1, "options": {"max_num_seqs": 4}},
        ],
        "routers": {"ports": [50050, 50051], "options": {"policy": "affinity", "json_logs": True}},
        "restarts": {"max_starts": 2, "first_s": 0.1},
    }
    spec = read(tmp_path, content)
    assert spec.groups[0].options == {"max_num_seqs": 8, "page_size": 16}
    assert spec.groups[1].options == {"max_num_seqs": 4, "page_size": 16}
    assert spec.groups[0].resources == Resources(0.5, 0, 1 << 30)
    assert spec.restarts == Restarts(max_starts=2, first_s=0.1)
    assert spec.ray.insecure
    launches = router_launches(spec, "/m")
    assert [each.port for each in launches] == [50050, 50051]
    words = ("route", "rtp-tiny", "--members", "/m", "--policy", "affinity", "--json-logs")
    assert launches[0].arguments == words


def test_options_are_spelled_as_flags():
    options = {"insecure": True, "reflection": False, "max_model_len": None, "num_pages": 7}
    assert flags(options) == (
        "--insecure",
        "--no-reflection",
        "--max-model-len",
        "none",
        "--num-pages",
        "7",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("- a list", "names and values"),
        ("a: [", "is not YAML"),
        ({"model": None}, "names no model"),
        ({"groups": []}, "has no groups"),
        ({"groups": ["w"]}, "names and values in a group"),
        ({"groups": [GROUP, GROUP]}, "two groups of the name w"),
        ({"groups": [{**GROUP, "role": "prefill"}]}, "nobody would generate"),
        ({"groups": [{**GROUP, "role": "chief"}]}, "role 'chief'"),
        ({"groups": [{**GROUP, "count": -1}]}, "count of w"),
        ({"groups": [{**GROUP, "count": True}]}, "count of w"),
        ({"groups": [{**GROUP, "hosts": 2}]}, "'hosts' in a group"),
        ({"groups": [{**GROUP, "name": "../up"}]}, "a group's name"),
        ({"groups": [{**GROUP, "cpus": "many"}]}, "cpus='many'"),
        ({"groups": [{**GROUP, "cpus": -1}]}, "cpus=-1"),
        ({"groups": [{**GROUP, "gpus": 0.5}]}, "gpus='0.5'"),
        ({"groups": [{**GROUP, "options": {"port": 1}}]}, "port among the options"),
        ({"groups": [{**GROUP, "options": {"metrics_port": 9}}]}, "one metrics_port"),
        ({"groups": [{**GROUP, "options": {"host": "0.0.0.0"}}]}, "host 0.0.0.0"),
        ({"options": {"max_num_sqs": 8}}, "RTPJ-1001"),
        ({"options": {"max_num_seqs": "8"}}, "RTPJ-1101"),
        ({"options": {"policy": "ttft"}}, "RTPJ-1001"),
        ({"options": {"tensor_parallel_size": "2"}}, "tensor_parallel_size"),
        ({"backend": "slurm"}, "backend 'slurm'"),
        ({"backend": "ray"}, "ray's address"),
        ({"ray": {"address": "auto"}}, "no `backend: ray`"),
        ({"ray": {"insecure": True}}, "no `backend: ray`"),
        (
            {
                "backend": "ray",
                "ray": {"address": "auto"},
                "options": {"kv_remote_url": "redis://:hush@h:1", "transfer_peers": "*"},
            },
            "RTP_JAX_KV_REMOTE_URL",
        ),
        ({"groups": [{**GROUP, "name": "router"}]}, "what routers are called"),
        ({"groups": [{**GROUP, "count": 0}]}, "nobody would generate"),
        ({"restarts": {"max_starts": 0}}, "max_starts=0"),
        ({"name": "Big One"}, "as name"),
        ({"colour": "red"}, "'colour' in the file"),
        ({"routers": {"ports": []}}, "routers' ports"),
        ({"routers": {"ports": [1, 1]}}, "two routers one port"),
        ({"routers": {"ports": [70000]}}, "a router's port"),
        ({"routers": {"options": {"members": "x"}}}, "members among the options"),
        ({"routers": {"ports": [0, 0], "options": {"http_port": 80}}}, "one http_port"),
        ({"restarts": {"max_starts": 1.5}}, "max_starts"),
        ({"restarts": {"forever": True}}, "'forever' in restarts"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, change, words):
    content = change if isinstance(change, str) else FILE | change
    with pytest.raises(InvalidArgument, match="RTPJ-5620 CLUSTER_FILE_INVALID") as refused:
        read(tmp_path, content)
    assert words in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="RTPJ-5620"):
        read_spec(tmp_path / "absent.yaml")
    with pytest.raises(InvalidArgument, match="more than"):
        read(tmp_path, "#" * (1 << 21))
