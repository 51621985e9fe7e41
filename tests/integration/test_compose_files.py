"""The compose files: what they promise, checked without an engine; and that both generations of compose take them."""

import copy
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from exporter_bridge.targets import read_targets
from gpu_telemetry import database
from gpu_telemetry.local.postgres import PostgresServer, _binaries
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings, LogSettings, Settings, split_address

ROOT = Path(__file__).parents[2]
DEMO, EXPORTERS = "docker-compose.yml", "docker-compose.exporters.yml"
WAYS = {"the demo": (DEMO,), "real exporters": (DEMO, EXPORTERS)}
# Which settings each of our commands reads, beside the log's.
READS = {
    "setup": (DatabaseSettings, KafkaSettings),
    "emulator": ("emulator.settings:EmulatorSettings",),
    "exporter-bridge": ("exporter_bridge.settings:BridgeSettings", KafkaSettings),
    "alert-engine": ("alerting.settings:AlertingSettings", DatabaseSettings, KafkaSettings),
    "api": ("api.settings:ApiSettings", DatabaseSettings),
}
PUBLISHED = {
    "kafka": 9092,
    "postgres": 5432,
    "emulator": 9400,
    "exporter-bridge": 9500,
    "api": 8080,
    "prometheus": 9090,
    "grafana": 3000,
}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}|\$(\$)")


def interpolated(value, environment):
    """What compose makes of `${NAME:-default}` and `$$` in a value."""
    if isinstance(value, dict):
        return {key: interpolated(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, environment) for each in value]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda match: match[3] or environment.get(match[1]) or match[2] or "", value)


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def merged(files, environment=None):
    """The project of some files, as compose merges what these files hold; a variable without a value is left out."""
    project = {}
    for name in files:
        for section, parts in yaml.safe_load(text_of(name)).items():
            if section.startswith("x-"):
                continue
            for part, content in parts.items():
                whole = project.setdefault(section, {}).setdefault(part, {})
                for key, value in (copy.deepcopy(content) or {}).items():
                    if isinstance(value, dict) and key in whole:
                        whole[key] |= value
                    elif isinstance(value, list) and key in whole:
                        whole[key] += value
                    else:
                        whole[key] = value
    project = interpolated(project, environment or {})
    for service in project["services"].values():
        given = service.get("environment", {})
        service["environment"] = {name: value for name, value in given.items() if value is not None}
    return project


def running(project):
    """The services that start where no profile is asked for."""
    return {name: service for name, service in project["services"].items() if not service.get("profiles")}


def compose_programs():
    """The compose programs of this machine: the plug-in, and the stand-alone one of either generation."""
    candidates = {"docker compose": ["docker", "compose"], "docker-compose": ["docker-compose"]}
    return {
        name: program
        for name, program in candidates.items()
        if shutil.which(program[0])
        and not subprocess.run([*program, "version"], capture_output=True, check=False).returncode
    }


def services_by(program, files, directory):
    """The services as a compose program reads the files, with nothing of this machine: no variables, no .env here."""
    empty = directory / "env"
    empty.touch()
    done = subprocess.run(
        [*program, "--env-file", empty, *(flag for name in files for flag in ("-f", name)), "config"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{program}: {done.stderr}"
    return yaml.safe_load(done.stdout)["services"]


@pytest.fixture(params=WAYS)
def project(request):
    return merged(WAYS[request.param])


@pytest.mark.parametrize("files", WAYS.values(), ids=WAYS)
def test_each_generation_of_compose_that_is_here_reads_the_files_as_we_do(files, tmp_path):
    programs = compose_programs()
    if not programs:
        pytest.skip("no compose here: Debian's package is docker-compose")
    ours = merged(files)
    for name, program in programs.items():
        theirs = services_by(program, files, tmp_path)
        for service, content in running(ours).items():
            read = {key: value for key, value in theirs[service].get("environment", {}).items() if value is not None}
            # Both write a dollar sign that is one twice again.
            expected = {key: value.replace("$", "$$") for key, value in content["environment"].items()}
            assert read == expected, f"{name}: {service}"
            assert set(theirs[service].get("depends_on", {})) == set(content.get("depends_on", {})), (
                f"{name}: {service}"
            )


def example_override():
    """The page's example of a Kafka and a PostgreSQL of one's own."""
    (block,) = re.findall(r"^```yaml\n(x-kafka:.*?)^```$", text_of("docs/compose.md"), re.MULTILINE | re.DOTALL)
    return block


def test_the_example_of_a_kafka_and_a_postgresql_of_ones_own_reaches_each_service_that_uses_them(tmp_path):
    example = yaml.safe_load(example_override())
    elsewhere = {"KAFKA_BOOTSTRAP_SERVERS": example["x-kafka"]["KAFKA_BOOTSTRAP_SERVERS"]}
    elsewhere |= {"DATABASE_URL": example["x-database"]["DATABASE_URL"]}
    project = merged((DEMO,))
    users = {
        (service, name)
        for service, content in project["services"].items()
        for name in elsewhere
        if name in content["environment"]
    }
    override = tmp_path / "docker-compose.override.yml"
    override.write_text(example_override())
    programs = compose_programs()
    if not programs:
        pytest.skip("no compose here: Debian's package is docker-compose")
    for program, command in programs.items():
        theirs = services_by(command, (DEMO, EXPORTERS, override), tmp_path)
        found = {
            (service, name): value
            for service, content in theirs.items()
            for name, value in content.get("environment", {}).items()
            if name in elsewhere
        }
        assert found == {(service, name): elsewhere[name] for service, name in users}, program


def test_the_files_use_nothing_that_one_of_the_generations_lacks():
    for name in (DEMO, EXPORTERS):
        content = yaml.safe_load(text_of(name))
        assert {key for key in content if not key.startswith("x-")} <= {"services", "volumes", "secrets"}
        assert "start_interval" not in text_of(name)


def test_the_services_are_those_of_the_contract():
    assert set(running(merged(WAYS["the demo"]))) == {*PUBLISHED, "setup", "alert-engine"}
    assert set(running(merged(WAYS["real exporters"]))) == {*PUBLISHED, "setup", "alert-engine"} - {"emulator"}


def test_published_ports_are_those_of_the_contract_on_loopback_only(project):
    published = {name: service["ports"] for name, service in project["services"].items() if "ports" in service}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PUBLISHED.items()}


def test_any_number_of_alert_engines_can_run(project):
    engine = project["services"]["alert-engine"]
    assert not {"ports", "container_name", "hostname"} & set(engine)
    assert not {"ALERTING_WORKER_ID", "ALERTING_INSTANCE_ID"} & set(engine["environment"])


def test_every_service_is_confined(project):
    for name, service in project["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].partition(":")[0] not in {"root", "0"}, name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert service["pids_limit"] <= 512, name
        assert service["logging"]["options"]["max-size"], name
        assert not {"privileged", "network_mode", "pid", "cap_add", "devices"} & set(service), name
        # Kafka's image writes its configuration when it starts.
        assert service.get("read_only") is (None if name == "kafka" else True), name


def test_every_service_that_stays_has_a_health_check_and_comes_back(project):
    for name, service in project["services"].items():
        if name == "setup":
            assert service["restart"] == "no"
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"]), name


def test_dependencies_start_in_an_order_and_wait_for_what_is_there(project):
    services = running(project)
    order = []
    while len(order) < len(services):
        ready = [
            name
            for name, each in services.items()
            if name not in order and set(each.get("depends_on", ())) <= set(order)
        ]
        assert ready, f"of {set(services) - set(order)} each waits for another, or for one that does not start"
        order += ready
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "setup" else "service_healthy"
            assert how["condition"] in {wanted, "service_started"}, f"{name} -> {other}"
    waits_for_setup = {name for name, each in services.items() if "setup" in each.get("depends_on", {})}
    assert waits_for_setup == set(READS) & set(services) - {"setup"}
    assert set(services["setup"]["depends_on"]) == {"postgres", "kafka"}


def settings_class(named):
    if isinstance(named, str):
        module, _, name = named.partition(":")
        return getattr(importlib.import_module(module), name)
    return named


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("service", READS)
def test_our_services_know_each_variable_they_are_given_and_take_its_value(monkeypatch, service, way):
    services = running(merged(WAYS[way]))
    if service not in services:
        assert service == "emulator"
        return
    for name in os.environ:
        if re.match(r"(BRIDGE|ALERTING|API|EMULATOR|KAFKA|DATABASE|LOG)_", name):
            monkeypatch.delenv(name)
    given = services[service]["environment"]
    for name, value in given.items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(ROOT / "compose/demo-secrets")))
    classes: list[type[Settings]] = [settings_class(each) for each in (*READS[service], LogSettings)]
    # Those that only .env gives a value are named without one.
    named = {
        name
        for file in WAYS[way]
        for name in yaml.safe_load(text_of(file))["services"].get(service, {}).get("environment", {})
    }
    assert named <= {each.variable(field) for each in classes for field in each.model_fields}
    for each in classes:
        each.load()


def test_our_services_listen_for_other_containers_and_are_asked_where_they_listen(project):
    for name in set(READS) - {"setup"}:
        service = project["services"][name]
        (listen,) = [value for key, value in service["environment"].items() if key.endswith("_LISTEN")]
        host, port = split_address(listen)
        assert host == "0.0.0.0", name
        assert urlsplit(service["healthcheck"]["test"][-1]).port == port, name
        assert port == PUBLISHED.get(name, 9501), name


def test_the_probe_tells_ready_from_unready_and_from_absent(tmp_path, free_ports):
    (port,) = free_ports(1)
    probe = merged(WAYS["the demo"])["services"]["api"]["healthcheck"]["test"][1:4]
    assert probe[:2] == ["python3", "-c"]
    url = f"http://127.0.0.1:{port}"
    assert subprocess.run([*probe, f"{url}/readyz"], capture_output=True, check=False).returncode != 0
    (tmp_path / "readyz").touch()
    server = subprocess.Popen(
        ["python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout.readline().startswith(b"Serving")
        assert subprocess.run([*probe, f"{url}/readyz"], check=False).returncode == 0
        assert subprocess.run([*probe, f"{url}/missing"], check=False).returncode != 0
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def test_actions_are_carried_out_in_the_emulated_fleet_and_dry_run_with_real_exporters():
    demo = merged(WAYS["the demo"])["services"]["alert-engine"]["environment"]
    assert demo["ALERTING_ACTIONS_DRY_RUN"] == "false"
    assert urlsplit(demo["ALERTING_MIGRATION_URL"]).netloc == "emulator:9400"
    real = merged(WAYS["real exporters"])["services"]
    assert real["alert-engine"]["environment"]["ALERTING_ACTIONS_DRY_RUN"] == "true"
    assert "ALERTING_MIGRATION_URL" not in real["alert-engine"]["environment"]
    assert "BRIDGE_HTTP_SD_URL" not in real["exporter-bridge"]["environment"]


def test_the_example_of_targets_is_one_that_the_bridge_takes():
    targets = read_targets((ROOT / "compose/targets/targets.example.yml").read_bytes(), "targets.example.yml")
    assert [target.node_id for target in targets] == ["gpu-host-01.example", "gpu-host-02.example", "gpu-host-03"]


def test_kafka_has_the_listeners_of_the_contract(project):
    environment = project["services"]["kafka"]["environment"]

    def listeners(name):
        return dict(each.split("://") for each in environment[name].split(","))

    assert {name: split_address(at)[1] for name, at in listeners("KAFKA_LISTENERS").items()} == {
        "INTERNAL": 29092,
        "HOST": 9092,
        "TOOLS": 9093,
        "CONTROLLER": 29093,
    }
    assert listeners("KAFKA_ADVERTISED_LISTENERS") == {
        "INTERNAL": "kafka:29092",
        "HOST": "localhost:9092",
        "TOOLS": "localhost:9093",
    }


def test_a_moved_port_of_kafka_is_advertised_where_it_is_published():
    kafka = merged(WAYS["the demo"], {"KAFKA_HOST_PORT": "19092"})["services"]["kafka"]
    assert kafka["ports"] == ["127.0.0.1:19092:9092"]
    assert "HOST://localhost:19092" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_passwords_stand_in_secret_files_and_the_ones_that_come_along_are_marked(project):
    for name, secret in project["secrets"].items():
        assert secret["file"] == f"./compose/demo-secrets/{name}"
        assert (ROOT / secret["file"]).read_text().startswith("demo-only-"), name
    for name, service in project["services"].items():
        assert set(service.get("secrets", [])) <= set(project["secrets"]), name
        for variable, value in service["environment"].items():
            if "PASSWORD" in variable:
                file = value.removeprefix("$__file{").removesuffix("}")
                assert file.removeprefix("/run/secrets/") in service["secrets"], f"{name}: {variable}"
            elif "://" in value and urlsplit(value).scheme == "postgresql":
                assert "password" not in conninfo_to_dict(value), f"{name}: {variable}"


def test_own_secrets_are_made_once_unlike_each_other_and_kept_from_others(tmp_path):
    script = [ROOT / "scripts/compose-secrets.sh", tmp_path / "own"]
    subprocess.run(script, check=True, capture_output=True)
    made = {file.name: file.read_text() for file in (tmp_path / "own").iterdir()}
    assert set(made) == set(merged(WAYS["the demo"])["secrets"])
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{48}\n", password) for password in made.values())
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    subprocess.run(script, check=True, capture_output=True)
    assert {file.name: file.read_text() for file in (tmp_path / "own").iterdir()} == made


def test_every_image_is_pinned_at_the_head_of_the_file_and_nowhere_else():
    content = yaml.safe_load(text_of(DEMO))
    images = interpolated(content["x-images"], {})
    for image in images.values():
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.?\d*[a-z0-9.-]*", image), image
    services = merged(WAYS["the demo"])["services"]
    assert {service["image"] for service in services.values()} == set(images.values()) - {images["python"]}
    assert [name for name, service in services.items() if "build" in service] == ["setup"]
    assert services["setup"]["build"]["args"] == {"PYTHON_IMAGE": images["python"]}
    assert all(f"`{image}`" in text_of("docs/compose.md") for name, image in images.items() if name != "ours")
    # The Dockerfile has a default of its own for a build without compose.
    assert re.findall(r"^ARG PYTHON_IMAGE=(.*)$", text_of("Dockerfile"), re.MULTILINE) == [images["python"]]


def test_the_image_is_of_hashed_wheels_and_holds_every_package():
    dockerfile = text_of("Dockerfile")
    assert "--require-hashes --only-binary=:all: --requirement requirements/base.txt" in dockerfile
    final = dockerfile.rpartition("FROM ")[2]
    assert "pip install" not in final
    assert "apt-get" not in dockerfile
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    copied = {
        source for line in re.findall(r"^COPY (?!--)(.*)$", dockerfile, re.MULTILINE) for source in line.split()[:-1]
    }
    packages = set(re.findall(r'"(\w+)\*"', re.search(r"include = \[(.*)\]", text_of("pyproject.toml"))[1]))
    assert packages <= copied
    ignored = text_of(".dockerignore").splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_every_volume_is_used_and_every_mounted_path_is_there(project):
    named = set()
    for name, service in project["services"].items():
        for mount in service.get("volumes", []):
            source, _, rest = mount.partition(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), f"{name}: {source}"
                assert rest.endswith(":ro"), f"{name}: {mount}"
            else:
                named.add(source)
    assert named == set(project["volumes"])
    scripts = set((ROOT / "compose/postgres").iterdir())
    assert all(os.access(script, os.X_OK) for script in scripts)
    mounts = [mount.split(":") for mount in project["services"]["postgres"]["volumes"]]
    assert {ROOT / source for source, target, *_ in mounts if "initdb.d" in target} == scripts


def test_prometheus_scrapes_services_where_they_listen():
    text = text_of("prometheus/prometheus.yml")
    asked = set(re.findall(r"\b([a-z][a-z-]*):(\d{4})\b", text)) - {("localhost", "9090")}
    ports = {name: PUBLISHED.get(name, 9501) for name in READS if name not in {"setup", "emulator"}}
    assert asked == {(name, str(port)) for name, port in ports.items()} - {("alert-engine", "9501")}
    assert "names: [alert-engine]" in text
    assert "port: 9501" in text


def test_grafana_is_given_what_its_provisioning_names_and_a_home(project):
    grafana = project["services"]["grafana"]
    names = set()
    for file in (ROOT / "grafana/provisioning").rglob("*.yml"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        names |= set(re.findall(r"\$\{?(GRAFANA_\w+)", "\n".join(lines)))
    given = {name for name in grafana["environment"] if name.startswith("GRAFANA_")}
    assert names == given
    # Only in braces does Grafana look into a value that names a file.
    assert "${GRAFANA_DATABASE_PASSWORD}" in text_of("grafana/provisioning/datasources/datasources.yml")
    mounts = {
        target: source for source, target, _ in (mount.split(":") for mount in grafana["volumes"] if ":ro" in mount)
    }
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounts[str(home.parent)] / home.name).exists()
    assert mounts[grafana["environment"]["GRAFANA_DASHBOARDS"]] == "./grafana/dashboards"
    kinds = {directory.name for directory in (ROOT / "grafana/provisioning").iterdir() if directory.is_dir()}
    assert kinds == {Path(target).name for target in mounts if target.startswith("/etc/grafana/provisioning/")}


def test_the_example_environment_names_every_variable_with_its_default():
    used = {}
    for name in (EXPORTERS, DEMO):
        used |= {match[1]: match[2] for match in VARIABLE.finditer(text_of(name)) if match[1]}
        for service in yaml.safe_load(text_of(name))["services"].values():
            used |= {
                key: "" for key, value in service.get("environment", {}).items() if value is None and key not in used
            }
    example = dict(
        line[1:].split("=", 1) for line in text_of(".env.example").splitlines() if re.match("#[A-Z_]+=", line)
    )
    files = example.pop("COMPOSE_FILE")
    assert files.split(":") == [DEMO, EXPORTERS]
    assert set(example) == set(used)
    for name, default in example.items():
        if not name.endswith("_IMAGE") and name not in {"BRIDGE_HTTP_SD_URL", "ALERTING_MIGRATION_URL"}:
            assert default == (used[name] or ""), name


def test_postgres_scripts_make_an_owner_who_is_no_superuser_the_schema_and_a_login_that_can_only_read(
    monkeypatch, tmp_path, free_ports
):
    # The image's superuser; the local stack's is telemetry itself.
    monkeypatch.setattr("gpu_telemetry.local.postgres.USER", "postgres")
    server = PostgresServer(
        tmp_path / "server", *free_ports(1), log=tmp_path / "postgres.log", password=False, durable=False
    )
    server.start()
    try:
        password = tmp_path / "password"
        password.write_text("it's secret\n")
        parts = conninfo_to_dict(server.url)
        environment = {
            "PATH": f"{_binaries()}:{os.environ['PATH']}",
            "PGHOST": parts["host"],
            "PGPORT": parts["port"],
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": parts["dbname"],
            "TELEMETRY_PASSWORD_FILE": str(password),
            "GRAFANA_READER_PASSWORD_FILE": str(password),
            "INIT_SQL": str(ROOT / "init.sql"),
        }
        for script in sorted((ROOT / "compose/postgres").iterdir()):
            subprocess.run([script], env=environment, check=True)
        ours = f"postgresql://telemetry@{parts['host']}:{parts['port']}/{parts['dbname']}"
        settings = DatabaseSettings(url=SecretStr(ours), password_file=password)
        assert database.upgrade(settings) == []
        with database.connect(settings, "test", autocommit=True) as owner:
            database.verify(owner)
            assert owner.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
            tables = owner.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
            assert tables == [("telemetry",)]
        with psycopg.connect(ours, user="grafana_reader", password="it's secret", autocommit=True) as reader:
            assert reader.execute("SELECT count(*) FROM gpu_metrics").fetchone() == (0,)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                reader.execute("DELETE FROM alerts")
            reader.execute("SET default_transaction_read_only = off")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute("DELETE FROM alerts")
    finally:
        server.stop()
