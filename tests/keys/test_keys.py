"""Keys: what is kept of them, the file, the command, who may come in, and that a running server takes notice."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd import cli
from ggufd.errors import ConfigError
from ggufd.keys import file
from ggufd.keys.ring import ANYBODY, PREFIX, Key, KeyRing, Limits, Role, digest_of, new_key
from ggufd.settings import access
from ggufd.settings.config import ServerSection
from tests.support.fakes.api_client import error_of, ring_of, running

A = digest_of("a").hex()


@pytest.fixture(autouse=True)
def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No file of whoever runs the tests."""
    folder = tmp_path / "user"
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


class TestRing:
    def test_a_key_is_found_by_its_hash(self) -> None:
        ring = ring_of("one", "two")
        found = ring.find(b"two")
        assert found is not None
        assert (found.name, found.role) == ("key-2", Role.ADMIN)
        assert ring.find(b"three") is None
        assert ring.find(b"") is None

    def test_what_was_replaced_lets_nobody_in(self) -> None:
        ring = ring_of("one")
        ring.replace([])
        assert ring.find(b"one") is None
        assert len(ring) == 0

    def test_new_keys_are_long_and_different(self) -> None:
        keys = {new_key() for _ in range(100)}
        assert len(keys) == 100
        assert all(key.startswith(PREFIX) and len(key) == len(PREFIX) + 43 for key in keys)

    def test_a_key_shows_nothing_of_what_opens_it(self) -> None:
        key = Key("alice", digest_of("secret"))
        assert repr(key.digest)[2:-1] not in repr(key)
        assert "digest" not in repr(key)

    @given(st.lists(st.text(min_size=1), unique=True), st.text())
    def test_exactly_the_keys_of_the_ring_open(self, keys: list[str], sent: str) -> None:
        keys = [key for key in keys if key.encode("utf-8", "ignore").decode() == key]
        sent = sent.encode("utf-8", "ignore").decode()
        ring = ring_of(*keys)
        assert (ring.find(sent.encode()) is not None) == (sent in keys)
        assert all(ring.find(key.encode()) for key in keys)


class TestFile:
    def test_a_key_is_kept_as_its_hash(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "keys.toml"
        key = file.add(path, "alice", {})
        text = path.read_text()
        assert key not in text
        assert key.removeprefix(PREFIX) not in text
        assert file.read(path) == (Key("alice", digest_of(key)),)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == ["keys.toml"]

    def test_role_and_limits_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.toml"
        options = {"role": "admin", "weight": 2.0, "max_running": 3, "max_waiting": 0, "tokens_per_minute": 60_000}
        file.add(path, "a.b@c", {**options, "max_priority": -2})
        (key,) = file.read(path)
        assert (key.name, key.role) == ("a.b@c", Role.ADMIN)
        assert key.limits == Limits(2.0, 3, 0, 60_000, -2)

    def test_what_people_wrote_into_it_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.toml"
        file.add(path, "alice", {})
        path.write_text(path.read_text() + "weight = 3 # she pays\n")
        file.add(path, "bob", {})
        file.add(path, "carol", {})
        file.revoke(path, "bob")
        assert "weight = 3 # she pays" in path.read_text()
        assert [key.name for key in file.read(path)] == ["alice", "carol"]

    def test_llama_servers_keys_stand_a_line_each_and_their_names_tell_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.txt"
        path.write_text("# the house's\n\nsesame\n  open \nsesame\n")
        keys = file.read(path)
        assert [key.digest for key in keys] == [digest_of("sesame"), digest_of("open")]
        assert [key.role for key in keys] == [Role.USER, Role.USER]
        assert len({key.name for key in keys}) == 2
        assert file.read(path) == keys
        for key in keys:
            suffix = key.name.removeprefix("key-")
            assert suffix not in key.digest.hex()
            assert hashlib.blake2b(b"sesame", digest_size=4).hexdigest() != suffix

    def test_a_byte_order_mark_is_no_part_of_the_first_key(self, tmp_path: Path) -> None:
        lines = tmp_path / "keys.txt"
        lines.write_text("sesame\nopen\n", "utf-8-sig")
        assert [key.digest for key in file.read(lines)] == [digest_of("sesame"), digest_of("open")]
        tables = tmp_path / "keys.toml"
        tables.write_text(f"[alice]\nsha256 = '{A}'\n", "utf-8-sig")
        assert [key.name for key in file.read(tables)] == ["alice"]
        file.add(tables, "bob", {})
        assert [key.name for key in file.read(tables)] == ["alice", "bob"]
        file.revoke(tables, "alice")
        assert [key.name for key in file.read(tables)] == ["bob"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[a\n", "line 1: not readable as TOML"),
            (f"[a]\nsha256 = '{'0' * 64}'\nsha256 = 'sesame'\n", "the same name stands twice in one table"),
            ("a = 'sesame'\n", "'a' is not a table"),
            ("[a]\n", "[a] sha256: field required"),
            ("[a]\nsha256 = 'sesame'\n", "[a] sha256: string should match"),
            (f"[a]\nsha256 = '{'0' * 64}'\nrole = 'king'\n", "[a] role: 'user' or 'admin'"),
            (f"[a]\nsha256 = '{'0' * 64}'\nweight = 0\n", "[a] weight: greater than 0"),
            (f"[a]\nsha256 = '{'0' * 64}'\nwieght = 1\n", "[a] wieght: extra inputs are not permitted"),
            (f"['']\nsha256 = '{'0' * 64}'\n", "is not a valid name for a key"),
            (f"['a b']\nsha256 = '{'0' * 64}'\n", "is not a valid name for a key"),
        ],
    )
    def test_a_bad_file_is_said_without_quoting_a_key(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "keys.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            file.read(path)
        assert words in caught.value.message
        assert "sesame" not in caught.value.message
        with pytest.raises(ConfigError):
            file.add(path, "b", {})
        assert path.read_text() == text

    @given(st.text(st.sampled_from("[]ab=.'\"{}1\n# sha256"), max_size=60))
    def test_any_file_is_read_or_refused_in_words(self, text: str) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ConfigError):
            path = Path(folder) / "keys.toml"
            path.write_text(text)
            file.read(path)

    def test_no_text_and_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "k.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="not UTF-8 text"):
            file.read(tmp_path / "k.toml")
        with pytest.raises(ConfigError, match="cannot be read: No such file"):
            file.read(tmp_path / "none.toml")

    @pytest.mark.parametrize("name", ["", "a b", "-x", "a" * 65, "a\nb", "[a]", "ä"])
    def test_names_are_plain(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigError, match="is not a valid name for a key"):
            file.add(tmp_path / "keys.toml", name, {})

    def test_a_name_is_there_once(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.toml"
        file.add(path, "alice", {})
        with pytest.raises(ConfigError, match="there is a key for alice already"):
            file.add(path, "alice", {})
        with pytest.raises(ConfigError, match="there is no key for 'bob'; the file has: alice"):
            file.revoke(path, "bob")

    def test_a_file_of_lines_is_not_changed(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"only a \.toml file"):
            file.add(tmp_path / "keys.txt", "alice", {})


class TestWatchedFile:
    def test_a_change_is_taken_up_and_a_fault_changes_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "keys.toml"
        first = file.add(path, "alice", {})
        own = Key("api-key-1", digest_of("mine"))
        ring = KeyRing((own, *file.read(path)))
        watched = file.WatchedFile(path, ring, (own,))
        second = file.add(path, "bob", {})
        assert ring.find(second.encode()) is None
        _look_twice(watched)
        assert ring.find(second.encode()) is not None
        file.revoke(path, "alice")
        _look_twice(watched)
        assert ring.find(first.encode()) is None
        path.write_text("nonsense\n")
        _look_twice(watched)
        assert "the keys stay as they are" in caplog.text
        path.unlink()
        _look_twice(watched)
        assert ring.find(second.encode()) is not None
        assert ring.find(b"mine") is own

    def test_it_is_read_when_it_changed_and_not_else(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        path = tmp_path / "keys.txt"
        path.write_text("one\n")
        watched = file.WatchedFile(path, KeyRing(file.read(path)), ())
        watched.reload_if_changed()
        assert caplog.messages == []
        path.write_text("two\n")
        os.utime(path, ns=(1, 1))
        watched.reload_if_changed()
        watched.reload_if_changed()
        watched.reload()
        assert caplog.messages == [f"keys from {path}: 1"] * 2

    def test_what_an_editor_leaves_for_a_moment_ends_no_key(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.txt"
        path.write_text("one\ntwo\n")
        ring = KeyRing(file.read(path))
        watched = file.WatchedFile(path, ring, ())
        path.write_text("")
        watched.reload_if_changed()
        path.write_text("one\nthree\n")
        watched.reload_if_changed()
        assert len(ring) == 2
        assert ring.find(b"two") is not None
        watched.reload_if_changed()
        assert [key.digest for key in ring] == [digest_of("one"), digest_of("three")]

    def test_a_file_that_stays_empty_ends_all_of_its_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.txt"
        path.write_text("one\n")
        own = Key("api-key-1", digest_of("mine"))
        ring = KeyRing((own, *file.read(path)))
        watched = file.WatchedFile(path, ring, (own,))
        path.write_text("")
        _look_twice(watched)
        assert list(ring) == [own]


def _look_twice(watched: file.WatchedFile) -> None:
    """A change is found, and then taken up."""
    watched.reload_if_changed()
    watched.reload_if_changed()


class TestAccess:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
    def test_listening_to_others_wants_a_key(self, host: str, config_folder: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            access.of(ServerSection(host=host))
        for words in ("--api-key", "--allow-unauthenticated", "ggufd keys add"):
            assert words in caught.value.message
        assert access.of(ServerSection(host=host, api_key=("k",))) is not None
        assert access.of(ServerSection(host=host, allow_unauthenticated=True)) is None
        file.add(config_folder / "keys.toml", "alice", {})
        assert access.of(ServerSection(host=host)) is not None

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
    def test_the_loopback_wants_none(self, host: str) -> None:
        assert access.of(ServerSection(host=host)) is None

    def test_configured_keys_are_an_admins(self) -> None:
        found = access.of(ServerSection(api_key=("a", "b")))
        assert found is not None
        assert [(key.name, key.role) for key in found.ring] == [("api-key-1", Role.ADMIN), ("api-key-2", Role.ADMIN)]

    def test_the_config_folders_file_counts_beside_them(self, config_folder: Path) -> None:
        key = file.add(config_folder / "keys.toml", "alice", {})
        found = access.of(ServerSection(api_key=("a",)))
        assert found is not None
        assert found.ring.find(b"a") is not None
        assert found.ring.find(key.encode()) is not None

    def test_a_file_that_comes_later_is_taken_up(self, config_folder: Path) -> None:
        found = access.of(ServerSection(api_key=("a",)))
        assert found is not None
        found.file.reload()
        key = file.add(config_folder / "keys.toml", "alice", {})
        _look_twice(found.file)
        assert found.ring.find(key.encode()) is not None

    def test_a_file_that_lets_nobody_in_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "k.toml").write_text("# nothing\n")
        with pytest.raises(ConfigError, match="holds no key, so every request would be refused"):
            access.of(ServerSection(api_key_file=str(tmp_path / "k.toml")))
        with pytest.raises(ConfigError, match="cannot be read"):
            access.of(ServerSection(api_key_file="missing.txt"))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Code, output and errors of one `ggufd keys` command."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["keys", *arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


class TestCommand:
    def test_a_key_is_made_listed_and_revoked(self, run: Run, config_folder: Path) -> None:
        code, out, err = run("add", "alice", "--admin", "--max-running", "2", "--weight", "1.5")
        assert code == 0
        assert out.startswith(PREFIX)
        assert str(config_folder / "keys.toml") in err
        (key,) = file.read(config_folder / "keys.toml")
        assert key == Key("alice", digest_of(out.strip()), Role.ADMIN, Limits(weight=1.5, max_running=2))
        code, out, _ = run("list")
        assert (code, out.split("\n")[1].split()) == (0, ["alice", "admin", "weight", "1.5,", "2", "running"])
        assert run("revoke", "alice")[0] == 0
        assert "Create one: ggufd keys add NAME" in run("list")[1]

    def test_the_settings_name_the_file(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GGUFD_API_KEY_FILE", str(tmp_path / "other.toml"))
        # That the network has no key yet is what is being mended.
        monkeypatch.setenv("GGUFD_HOST", "0.0.0.0")
        assert run("add", "alice")[0] == 0
        assert file.read(tmp_path / "other.toml")[0].name == "alice"
        assert run("add", "bob", "--api-key-file", str(tmp_path / "third.toml"))[0] == 0
        assert file.read(tmp_path / "third.toml")[0].name == "bob"

    def test_what_is_wrong_is_one_line(self, run: Run) -> None:
        assert run("revoke", "nobody")[0] == 1
        code, out, err = run("add", "a b")
        assert (code, out) == (1, "")
        assert err.startswith("ggufd: 'a b' is not a valid name for a key")
        assert run("add", "alice", "--weight", "0")[2].count("\n") == 1


class TestRoles:
    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/slots"), ("GET", "/debug/steps"), ("POST", "/slots/0?action=erase"), ("POST", "/props")],
    )
    async def test_what_shows_or_changes_the_server_is_an_admins(self, method: str, path: str) -> None:
        async with running(keys=ring_of("user", role=Role.USER)) as api:
            response = await api.http.request(method, path, headers={"x-api-key": "user"})
            error = error_of(response, 403)
            assert (error["type"], error["code"]) == ("permission_error", "admin_key_required")
            assert "'key-1' is a user's" in error["message"]
            response = await api.http.request(method, path, headers={"x-api-key": "nobody"})
            assert error_of(response, 401)
        for settings in ({"keys": ring_of("admin")}, {}):
            async with running(**settings) as api:
                response = await api.http.request(method, path, headers={"x-api-key": "admin"})
                assert response.status_code != 403

    async def test_a_users_key_generates(self) -> None:
        body: dict[str, Any] = {"prompt": "a"}
        async with running(keys=ring_of("user", role=Role.USER)) as api:
            response = await api.post("/v1/completions", body, headers={"x-api-key": "user"})
            assert response.status_code == 200
            assert api.engine.requests[0].principal.name == "key-1"

    async def test_a_revoked_key_is_refused_from_the_next_request_on(self) -> None:
        ring = ring_of("secret")
        async with running(keys=ring) as api:
            assert (await api.http.get("/v1/models", headers={"x-api-key": "secret"})).status_code == 200
            ring.replace([])
            assert error_of(await api.http.get("/v1/models", headers={"x-api-key": "secret"}), 401)
            assert error_of(await api.http.get("/v1/models"), 401)

    @pytest.mark.parametrize(
        ("sharing", "n_keys", "namespace"),
        [
            ("auto", 0, ""),
            ("auto", 1, ""),
            ("auto", 2, A),
            ("shared", 2, ""),
            ("per-key", 1, A),
            ("per-key", 0, "127.0.0.1"),
        ],
    )
    async def test_the_cache_is_shared_as_configured(self, sharing: str, n_keys: int, namespace: str) -> None:
        keys = ring_of(*"ab"[:n_keys]) if n_keys else None
        async with running(keys=keys, cache_sharing=sharing) as api:
            response = await api.post("/v1/completions", {"prompt": "x"}, headers={"x-api-key": "a"})
            assert response.status_code == 200
            assert api.engine.requests[0].principal.cache_namespace == namespace

    async def test_a_second_key_parts_the_cache_at_once(self) -> None:
        ring = ring_of("a")
        async with running(keys=ring) as api:
            for keys in ("a", "ab", "a"):
                ring.replace(ring_of(*keys))
                await api.post("/v1/completions", {"prompt": "x"}, headers={"x-api-key": "a"})
            assert [request.principal.cache_namespace for request in api.engine.requests] == ["", A, ""]

    async def test_what_outlives_the_process_goes_by_the_key_and_not_by_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "responses.sqlite"
        async with running(keys=ring_of("a", "b"), responses_path=path) as api:
            mine = (await api.post("/v1/responses", {"input": "x"}, headers={"x-api-key": "a"})).json()["id"]
            namespace = api.engine.requests[0].principal.cache_namespace
        async with running(keys=ring_of("b", "a"), responses_path=path) as api:
            found = [
                (await api.http.get(f"/v1/responses/{mine}", headers={"x-api-key": key})).status_code for key in "ab"
            ]
            await api.post("/v1/completions", {"prompt": "x"}, headers={"x-api-key": "b"})
            assert api.engine.requests[0].principal.cache_namespace != namespace
        assert found == [200, 404]

    async def test_another_key_under_the_same_name_finds_nothing_of_the_earlier_one(self) -> None:
        ring = KeyRing((Key("alice", digest_of("a")), Key("bob", digest_of("b"))))
        async with running(keys=ring) as api:
            mine = (await api.post("/v1/responses", {"input": "x"}, headers={"x-api-key": "a"})).json()["id"]
            ring.replace([Key("alice", digest_of("new")), Key("bob", digest_of("b"))])
            await api.post("/v1/completions", {"prompt": "x"}, headers={"x-api-key": "new"})
            found = await api.http.get(f"/v1/responses/{mine}", headers={"x-api-key": "new"})
            assert found.status_code == 404
            earlier, later = api.engine.requests
            assert earlier.principal.cache_namespace != later.principal.cache_namespace
            assert earlier.principal.account == later.principal.account == "alice"

    def test_without_keys_everybody_is_an_admin(self) -> None:
        assert ANYBODY.is_admin
        assert ANYBODY.name == ""
