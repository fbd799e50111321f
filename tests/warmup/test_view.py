"""Which objects are pools, whose an InferenceService is, and what it asks for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.warmup.objects import Made, condition, deployment, knative_service, metadata, model_service, pool_service
from warmup.view import Invalid, Model, Pool, Stranger, Variable, Wish, location, model, models, pools


def kserve_pools(*services: Made, knative: tuple[Made, ...] = (), runtimes: tuple[Made, ...] = ()) -> dict[str, Pool]:
    return pools(services, runtimes, knative, ())


def test_an_inference_service_with_the_label_is_a_pool_and_its_revision_is_the_knative_services() -> None:
    (pool,) = kserve_pools(pool_service(), knative=(knative_service(owner="gpu"),)).values()
    assert (pool.kind, pool.url, pool.address) == (
        "kserve",
        "http://gpu-predictor.ns.example.com",
        "http://gpu-predictor.ns.svc.cluster.local",
    )
    assert (pool.service, pool.revision, pool.ready) == ("gpu-predictor", "gpu-predictor-00001", True)
    assert pool.owner.reference() == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "name": "gpu",
        "uid": "uid-gpu",
    }


def test_a_knative_service_with_the_label_is_a_pool_unless_kserve_made_it() -> None:
    plain = knative_service("plain", labels={"hearth.dev/pool": "plain"})
    copied = knative_service("gpu-predictor", owner="gpu", labels={"hearth.dev/pool": "gpu"})
    found = pools([pool_service()], [], [plain, copied], [])
    assert {name: pool.kind for name, pool in found.items()} == {"gpu": "kserve", "plain": "knative"}
    assert (found["plain"].service, found["plain"].address) == ("plain", "http://plain.ns.svc.cluster.local")
    assert found["plain"].service_account == "plain"


def test_a_deployment_with_the_label_is_a_pool_at_the_service_of_its_name_unless_knative_or_kserve_made_it() -> None:
    made = [
        deployment(f"of-{group}", ownerReferences=[{"apiVersion": f"{group}/v1", "kind": "Any", "name": "x", "uid": "u"}])
        for group in ("serving.knative.dev", "serving.kserve.io")
    ]
    found = pools([], [], [], [deployment(), *made])
    assert set(found) == {"cpu"}
    assert (found["cpu"].kind, found["cpu"].url, found["cpu"].ready) == ("deployment", "http://cpu.ns.svc.cluster.local", True)
    assert found["cpu"].service == found["cpu"].revision == ""


def test_a_deployment_without_pods_is_not_ready_and_says_why() -> None:
    pool = pools([], [], [], [deployment(available="False")])["cpu"]
    assert (pool.readiness, pool.reason, pool.message) == ("False", "MinimumReplicasUnavailable", "none is there")


def test_a_model_and_what_is_being_deleted_are_no_pools() -> None:
    labelled = model_service()
    labelled["metadata"]["labels"] = {"hearth.dev/pool": "x"}
    assert not kserve_pools(labelled, pool_service("old", deletionTimestamp="2026-01-02T00:00:00Z"))


def test_of_two_default_pools_the_oldest_is_it_and_the_other_says_so() -> None:
    found = kserve_pools(
        pool_service("new", default=True, creationTimestamp="2026-02-01T00:00:00Z"),
        pool_service("old", default=True),
    )
    assert (found["old"].is_default, found["old"].remark) == (True, "")
    assert not found["new"].is_default
    assert "that is old" in found["new"].remark


def test_of_two_objects_that_claim_a_pools_name_the_oldest_is_it_and_says_so() -> None:
    found = kserve_pools(pool_service("b", pool="p", creationTimestamp="2026-02-01T00:00:00Z"), pool_service("a", pool="p"))
    assert found["p"].owner.name == "a"
    assert "InferenceService b is labelled" in found["p"].remark


@pytest.mark.parametrize(
    ("conditions", "revision", "readiness", "why"),
    [
        pytest.param(
            [("RoutesReady", "True"), ("Ready", "Unknown")], "r1", "True", "", id="a new revision is tried: it serves"
        ),
        pytest.param([("RoutesReady", "True"), ("Ready", "False")], "r1", "True", "", id="a new revision failed: it serves"),
        pytest.param([("RoutesReady", "False")], "r1", "False", "Why", id="its route failed: it does not serve"),
        pytest.param([("Ready", "False")], "", "False", "Why", id="its first revision failed: it does not serve"),
        pytest.param([("Ready", "Unknown")], "", "Unknown", "Why", id="its first revision is tried: nobody knows"),
        pytest.param([], "", "Unknown", "PoolNotReady", id="Knative has not seen it yet: nobody knows"),
    ],
)
def test_a_pool_serves_while_its_route_leads_to_a_revision(
    conditions: list[tuple[str, str]], revision: str, readiness: str, why: str
) -> None:
    beneath = knative_service(labels={"hearth.dev/pool": "p"})
    beneath["status"]["conditions"] = [condition(kind, status, "Why", "because") for kind, status in conditions]
    beneath["status"]["latestReadyRevisionName"] = revision
    plain = pools([], [], [beneath], [])["p"]
    beneath["metadata"]["ownerReferences"] = [{"apiVersion": "serving.kserve.io/v1beta1"}]
    of_kserve = pools([pool_service()], [], [beneath], [])["gpu"]
    assert (plain.readiness, plain.reason) == (of_kserve.readiness, of_kserve.reason) == (readiness, why)


def test_a_pool_of_kserve_whose_ingress_failed_does_not_serve() -> None:
    service = pool_service()
    service["status"]["conditions"][0] = condition("IngressReady", "False", "NoGateway", "none")
    assert kserve_pools(service, knative=(knative_service(owner="gpu"),))["gpu"].reason == "NoGateway"


@pytest.mark.parametrize("said", ["2030-01-31T12:00:00Z", "2030-01-31T13:00:00+01:00"])
def test_until_when_a_pool_is_to_be_warm_stands_at_its_serving_runtime_or_its_knative_service(said: str) -> None:
    annotated: Made = {"annotations": {"hearth.dev/warm-until": said}}
    runtime = {"metadata": metadata("gpu", **annotated)}
    plain = knative_service("plain", labels={"hearth.dev/pool": "plain"}, **annotated)
    found = pools([pool_service()], [runtime], [plain], [])
    moment_s = datetime(2030, 1, 31, 12, tzinfo=UTC).timestamp()
    assert found["gpu"].warm_until_s == found["plain"].warm_until_s == moment_s


@pytest.mark.parametrize("said", ["soon", "2030-01-31T12:00:00", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
def test_a_moment_that_is_none_or_lies_beyond_the_years_that_can_be_told_counts_for_nothing(said: str) -> None:
    plain = knative_service("plain", labels={"hearth.dev/pool": "plain"}, annotations={"hearth.dev/warm-until": said})
    pool = pools([], [], [plain], [])["plain"]
    assert pool.warm_until_s is None
    assert "no RFC 3339 moment" in pool.remark


def test_what_a_pool_is_to_have_ahead_of_its_traffic_stands_there_too() -> None:
    said = {
        "hearth.dev/warm-at": "55 8 * * 1-5 for 2h",
        "hearth.dev/warm-timezone": "Europe/Berlin",
        "hearth.dev/cold-start-weight": "12.5",
        "hearth.dev/forecast": "off",
    }
    plain = knative_service("plain", labels={"hearth.dev/pool": "plain"}, annotations=said)
    pool = pools([], [], [plain], [])["plain"]
    assert [entry.text for entry in pool.wishes.calendar.entries] == ["55 8 * * 1-5 for 2h"]
    assert (pool.wishes.weight, pool.wishes.forecasts, pool.remark) == (12.5, False, "")
    assert pools([], [], [plain], [])["plain"] == pool, "what did not change is no change"


def test_on_the_pools_inference_service_it_counts_for_nothing_and_the_remark_says_where_it_belongs() -> None:
    said = {"hearth.dev/warm-at": "55 8 * * 1-5 for 2h", "example.com/else": "x"}
    (pool,) = kserve_pools(pool_service(annotations=said), knative=(knative_service(owner="gpu"),)).values()
    assert not pool.wishes.calendar.entries
    assert "hearth.dev/warm-at counts for nothing here, write it on ServingRuntime gpu" in pool.remark
    assert "example.com" not in pool.remark


@pytest.mark.parametrize(
    ("name", "said", "remark"),
    [
        ("warm-at", "at nine", "five fields"),
        ("warm-timezone", "Mars/Olympus", "Europe/Berlin"),
        ("cold-start-weight", "much", "no number"),
        ("cold-start-weight", "-1", "no number"),
        ("cold-start-weight", "nan", "no number"),
        ("forecast", "maybe", "auto or off"),
    ],
)
def test_what_cannot_be_read_there_is_remarked_and_changes_nothing(name: str, said: str, remark: str) -> None:
    plain = knative_service("plain", labels={"hearth.dev/pool": "plain"}, annotations={f"hearth.dev/{name}": said})
    pool = pools([], [], [plain], [])["plain"]
    assert remark in pool.remark
    assert f"hearth.dev/{name}" in pool.remark
    assert pool.wishes.weight is None
    assert not pool.wishes.calendar.entries


@pytest.mark.parametrize("said", ["soon", "2030-01-31T12:00:00", "30m"])
def test_a_moment_that_is_none_warms_nothing_and_is_remarked(said: str) -> None:
    pool = kserve_pools(pool_service(), runtimes=({"metadata": metadata("gpu", annotations={"hearth.dev/warm-until": said})},))[
        "gpu"
    ]
    assert pool.warm_until_s is None
    assert "no RFC 3339 moment" in pool.remark


def test_a_pools_environment_is_that_of_the_container_that_serves() -> None:
    service = pool_service()
    service["spec"]["predictor"]["containers"] = [
        {"name": "sidecar", "env": [{"name": "NO", "value": "x"}]},
        {
            "name": "kserve-container",
            "envFrom": [{"prefix": "P_", "secretRef": {"name": "all"}}],
            "env": [
                {"name": "HEARTH_TRUST", "value": "code"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "id"}}},
                {"name": "REGION", "valueFrom": {"configMapKeyRef": {"name": "place", "key": "region"}}},
            ],
        },
    ]
    assert kserve_pools(service)["gpu"].environment == (
        Variable("P_", secret="all"),
        Variable("HEARTH_TRUST", "code"),
        Variable("KEY", secret="s3", key="id"),
        Variable("REGION", config_map="place", key="region"),
    )


# ---- models --------------------------------------------------------------------------------------------------

POOLS = kserve_pools(pool_service())
WITH_DEFAULT = kserve_pools(pool_service("other"), pool_service(default=True))


def wish_of(service: Made, found: dict[str, Pool] = POOLS) -> Wish | Invalid:
    read = model(service, found, ())
    assert isinstance(read, Model), read
    return read.wish


def test_a_model_that_names_a_pool_is_ours() -> None:
    service = model_service()
    service["status"] = {"observedGeneration": 1}
    assert model(service, POOLS, ()) == Model(
        "mnist", "ns", "uid-mnist", 1, "gpu", Wish(storage_uri="s3://models/mnist", format="onnx"), service["status"]
    )


@pytest.mark.parametrize(
    ("runtime", "found", "runtimes", "expected"),
    [
        pytest.param(None, WITH_DEFAULT, (), "gpu", id="names no runtime, there is a default pool: the default pool's"),
        pytest.param("other", WITH_DEFAULT, (), "other", id="names a pool beside the default one: that pool's"),
        pytest.param(
            None, POOLS, (), Stranger("mnist", "ns", "uid-mnist"), id="names no runtime, there is no default: another's"
        ),
        pytest.param(
            "mlserver", POOLS, ("mlserver",), Stranger("mnist", "ns", "uid-mnist"), id="names a ServingRuntime: another's"
        ),
        pytest.param("gpo", POOLS, ("x",), Stranger("mnist", "ns", "uid-mnist", "gpo"), id="names what nobody is: unknown"),
    ],
)
def test_whose_a_model_is(
    runtime: str | None, found: dict[str, Pool], runtimes: tuple[str, ...], expected: str | Stranger
) -> None:
    read = model(model_service(runtime=runtime), found, runtimes)
    assert (read.pool if isinstance(read, Model) else read) == expected


@pytest.mark.parametrize("annotations", [{}, {"serving.kserve.io/deploymentMode": "Serverless"}, None])
def test_what_is_not_in_model_mesh_mode_is_no_model(annotations: Made | None) -> None:
    service = model_service()
    service["metadata"]["annotations"] = annotations
    assert model(service, POOLS, ()) is None


def test_a_model_that_is_being_deleted_is_gone() -> None:
    service = model_service()
    service["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert model(service, POOLS, ()) is None


def test_a_list_comes_apart_into_ours_and_others() -> None:
    ours, others = models([model_service("a"), model_service("b", runtime="x"), pool_service()], POOLS, ())
    assert ([one.name for one in ours], [one.name for one in others]) == (["a"], ["b"])


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        pytest.param(
            model_service(storageUri="s3://models//a/b/"),
            Wish(storage_uri="s3://models/a/b", format="onnx"),
            id="slashes around the key mean nothing",
        ),
        pytest.param(
            model_service(modelFormat={"name": "pytorch", "version": "2"}),
            Wish(storage_uri="s3://models/mnist", format="pytorch", format_version="2"),
            id="format and its version",
        ),
        pytest.param(
            model_service(storage={"key": "minio", "path": "/a/b", "parameters": {"type": "s3", "bucket": "x"}}),
            Wish(
                storage_path="a/b",
                storage_key="minio",
                parameters=(("bucket", "x"), ("type", "s3")),
                by_storage=True,
                format="onnx",
            ),
            id="storage with key, path and parameters",
        ),
        pytest.param(
            model_service(storageUri="s3://m/a", storage={"key": "minio"}),
            Wish(storage_uri="s3://m/a", storage_key="minio", by_storage=True, format="onnx"),
            id="storageUri with the key of storage, as KServe has it",
        ),
        pytest.param(
            model_service(
                predictor={
                    "model": {"runtime": "gpu", "storageUri": "s3://m/a"},
                    "serviceAccountName": "sa",
                    "canaryTrafficPercent": 5,
                }
            ),
            Wish(storage_uri="s3://m/a", service_account="sa", percent=5),
            id="ServiceAccount and canary; without a format the files tell it",
        ),
        pytest.param(
            model_service(predictor={"model": {"runtime": "gpu", "storageUri": "s3://m/a"}, "canaryTrafficPercent": 0}),
            Wish(storage_uri="s3://m/a", percent=0),
            id="a canary of nothing is not the same as none",
        ),
    ],
)
def test_what_a_model_asks_for(service: Made, expected: Wish) -> None:
    assert wish_of(service) == expected


@pytest.mark.parametrize("framework", ["onnx", "pytorch"])
def test_a_framework_field_from_before_model_is_a_model_of_that_format(framework: str) -> None:
    service = model_service(predictor={framework: {"storageUri": "s3://m/a"}})
    assert wish_of(service, WITH_DEFAULT) == Wish(storage_uri="s3://m/a", format=framework)


def test_labels_and_the_annotation_that_names_a_secret_are_read() -> None:
    service = model_service()
    service["metadata"]["labels"] = {"hearth.dev/tenant": "red", "hearth.dev/priority": "high"}
    service["metadata"]["annotations"]["serving.kserve.io/storageSecretName"] = "mine"
    wish = wish_of(service)
    assert isinstance(wish, Wish)
    assert (wish.tenant, wish.priority, wish.secret) == ("red", "high", "mine")


def with_spec(**spec: Any) -> Made:
    service = model_service()
    service["spec"] |= spec
    return service


def with_labels(**labels: str) -> Made:
    service = model_service()
    service["metadata"]["labels"] = {f"hearth.dev/{name}": value for name, value in labels.items()}
    return service


@pytest.mark.parametrize(
    ("service", "reason", "says"),
    [
        pytest.param(
            model_service(modelFormat={"name": "sklearn"}), "NoSupportingRuntime", "served are onnx, pytorch", id="sklearn"
        ),
        pytest.param(
            model_service(predictor={"xgboost": {"storageUri": "s3://m/a"}}), "NoSupportingRuntime", "'xgboost'", id="xgboost"
        ),
        pytest.param(model_service(predictor={"containers": [{}]}), "InvalidPredictorSpec", "there is none", id="no model"),
        pytest.param(
            model_service(predictor={"onnx": {}, "model": {}}),
            "InvalidPredictorSpec",
            "there are model and onnx",
            id="two models",
        ),
        pytest.param(model_service(storageUri=""), "InvalidPredictorSpec", "does not say where", id="no location"),
        pytest.param(
            model_service(predictor={"model": {}, "storageUris": [{"uri": "s3://m/a"}]}),
            "InvalidPredictorSpec",
            "in one place",
            id="several locations at once",
        ),
        pytest.param(
            model_service(storage={"key": "x"}), "InvalidPredictorSpec", "does not say where", id="a key without a path"
        ),
        pytest.param(
            model_service(storageUri="s3://m/a", storage={"path": "b"}),
            "InvalidPredictorSpec",
            "remove one of them",
            id="two locations",
        ),
        pytest.param(
            model_service(storage={"path": "b", "parameters": {"secret_access_key": "x"}}),
            "InvalidPredictorSpec",
            "belong into a Secret",
            id="a secret among the parameters",
        ),
        pytest.param(
            model_service(storage={"path": "a/../b"}), "InvalidPredictorSpec", "storage.path 'a/../b'", id="a path upwards"
        ),
        pytest.param(
            with_spec(transformer={"containers": [{}]}), "InvalidPredictorSpec", "spec.transformer", id="a transformer"
        ),
        pytest.param(with_spec(explainer={"containers": [{}]}), "InvalidPredictorSpec", "spec.explainer", id="an explainer"),
        pytest.param(with_labels(priority="urgent"), "InvalidPredictorSpec", "high, normal, batch", id="no priority"),
        pytest.param(with_labels(tenant="a b"), "InvalidPredictorSpec", "no tenant's name", id="no tenant"),
        pytest.param(
            model_service(predictor={"model": {"storageUri": "s3://m/a"}, "canaryTrafficPercent": 101}),
            "InvalidPredictorSpec",
            "between 0 and 100",
            id="no percent",
        ),
    ],
)
def test_what_cannot_be_says_why_and_what_to_do(service: Made, reason: str, says: str) -> None:
    wish = wish_of(service, WITH_DEFAULT)
    assert isinstance(wish, Invalid)
    assert (wish.reason, wish.passing) == (reason, False)
    assert says in wish.message


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://m/a", "from S3 alone"),
        ("https://host/a", "from S3 alone"),
        ("pvc://claim/a", "from S3 alone"),
        ("models/a", "from S3 alone"),
        ("S3://m/a", "from S3 alone"),
        ("s3://m", "names a bucket"),
        ("s3://m/", "names a bucket"),
        ("s3:///a", "no bucket's name"),
        ("s3://user@m/a", "no bucket's name"),
        ("s3://m/a?versionId=1", "have no place in it"),
        ("s3://m/a#b", "have no place in it"),
        ("s3://m/a\nb", "have no place in it"),
        ("s3://m/../b", "no S3 key"),
        ("s3://m/a/./b", "no S3 key"),
        ("s3://m/" + "x" * 1025, "at most 1024 bytes"),
    ],
)
def test_a_location_that_nothing_is_served_from(uri: str, says: str) -> None:
    read = location(uri)
    assert isinstance(read, Invalid)
    assert says in read.message
    assert len(read.message) < 500


@pytest.mark.parametrize("broken", [{}, {"metadata": None}, {"metadata": {"annotations": []}, "spec": 3}, {"status": "x"}])
def test_an_object_that_is_hardly_one_is_nobodys(broken: Made) -> None:
    assert model(broken, WITH_DEFAULT, ()) is None
    assert pools([broken], [broken], [broken], [broken]) == {}
    broken = {**broken, "metadata": {"name": "x", "annotations": {"serving.kserve.io/deploymentMode": "ModelMesh"}}}
    assert isinstance(wish_of(broken, WITH_DEFAULT), Invalid)
