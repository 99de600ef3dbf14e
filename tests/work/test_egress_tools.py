"""Programs as agents use them, by HTTP_PROXY alone, against local servers that stand for public ones."""

import asyncio
import base64
import hashlib
import io
import json
import os
import shutil
import ssl
import sys
import tarfile
import zipfile
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.egress import WORKERS_LOOP, Names, egress, policy

LOOPS = WORKERS_LOOP


def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture
def certificate(tmp_path):
    """A file with key and certificate of public.test."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "public.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("public.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def away(_request):
    raise web.HTTPFound("http://secret.test/file")


@asynccontextmanager
async def public(folder, certificate=None):
    """Serves the files of a folder; yields the port."""
    app = web.Application()
    app.router.add_get("/away", away)
    app.router.add_static("/", folder)
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def fenced():
    """A proxy of a session that may reach public.test, and knows of secret.test."""
    names = Names({"public.test": ["127.0.0.1"], "secret.test": ["127.0.0.1"]})
    async with egress(policy("LISTED", ["public.test"]), names) as door:
        yield door


async def run(door, home, *command, **more):
    """Whether a program did it, and what it said; it knows of the network what its environment says."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8",
        "HTTP_PROXY": door.url, "http_proxy": door.url, "HTTPS_PROXY": door.url, "https_proxy": door.url,
        "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", **more,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=home, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode == 0, output.decode()


def told(door):
    return {(access.host, access.allowed) for access in door.reports}


BOTH = {("public.test", True), ("secret.test", False)}


@needs("curl")
async def test_curl(tmp_path, certificate):
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    async with public(tmp_path) as port, public(tmp_path, certificate) as secure, fenced() as door:
        socks = ("--socks5-hostname", f"127.0.0.1:{door.port}", "--proxy", "")
        for url, options in (
            (f"http://public.test:{port}/file", ()),
            (f"http://public.test:{port}/file", ("--proxytunnel",)),
            (f"https://public.test:{secure}/file", ("--cacert", str(certificate))),
            (f"http://public.test:{port}/file", socks[:2]),
            (f"https://public.test:{secure}/file", (*socks[:2], "--cacert", str(certificate))),
        ):
            done, output = await run(door, tmp_path, "curl", "-sS", "-o", "got", *options, url)
            assert done, output
            assert (tmp_path / "got").read_bytes() == (tmp_path / "file").read_bytes()
        # Nor does another host lead there.
        for url in (f"http://secret.test:{port}/file", f"http://public.test:{port}/away"):
            done, output = await run(door, tmp_path, "curl", "-sSL", url)
            assert "secret.test:" in output
            assert "not listed" in output
        done, output = await run(door, tmp_path, "curl", "-sS", f"https://secret.test:{secure}/file")
        assert not done
        assert "403" in output
        # It waits for 100 Continue before it sends so much; a server of static files wants no POST.
        done, output = await run(
            door, tmp_path, "curl", "-sS", "-o", "-", "-w", "%{http_code}", "--data-binary", "@file", f"http://public.test:{port}/x"
        )  # fmt: skip
        assert output.endswith("405")
        assert told(door) == BOTH


@needs("git")
async def test_git(tmp_path, certificate):
    made = (
        "git init -q -b main work && cd work && git config user.email a@b.c && git config user.name a && echo hello > file"
        " && git add file && git commit -qm first && cd .. && git clone -q --bare work repo.git && git -C repo.git update-server-info"
    )
    async with public(tmp_path) as port, public(tmp_path, certificate) as secure, fenced() as door:
        done, output = await run(door, tmp_path, "sh", "-c", made)
        assert done, output
        for number, url in enumerate((f"http://public.test:{port}", f"https://public.test:{secure}")):
            done, output = await run(
                door, tmp_path, "git", "clone", f"{url}/repo.git", f"got{number}", GIT_SSL_CAINFO=str(certificate)
            )
            assert done, output
            assert (tmp_path / f"got{number}" / "file").read_text() == "hello\n"
        done, output = await run(door, tmp_path, "git", "clone", f"http://secret.test:{port}/repo.git", "never")
        assert not done
        assert "403" in output
        assert told(door) == BOTH


async def test_pip(tmp_path):
    python = getattr(sys, "_base_executable", sys.executable)
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("demo.py", "")
        archive.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("demo-1.0.dist-info/RECORD", "")
    index = tmp_path / "simple" / "demo"
    index.mkdir(parents=True)
    (index / "demo-1.0-py3-none-any.whl").write_bytes(wheel.getvalue())
    page = '<a href="demo-1.0-py3-none-any.whl">demo-1.0-py3-none-any.whl</a>'
    async with public(tmp_path) as port, fenced() as door:
        done, output = await run(door, tmp_path, python, "-m", "pip", "--version")
        if not done:
            pytest.skip("pip is not installed")
        # Static files have no pages of folders.
        (index / "page.html").write_text(page)
        find = f"http://public.test:{port}/simple/demo/page.html"
        options = ("--no-index", "--disable-pip-version-check", "--no-cache-dir", "--retries", "0", "--trusted-host")
        done, output = await run(
            door, tmp_path, python, "-m", "pip", "download", *options, "public.test", "--find-links", find, "-d", "got", "demo"
        )  # fmt: skip
        assert done, output
        assert (tmp_path / "got" / "demo-1.0-py3-none-any.whl").read_bytes() == wheel.getvalue()
        find = find.replace("public", "secret")
        done, output = await run(
            door, tmp_path, python, "-m", "pip", "download", *options, "secret.test", "--find-links", find, "-d", "got", "demo"
        )  # fmt: skip
        assert not done
        assert told(door) == BOTH


@needs("npm")
async def test_npm(tmp_path):
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        for name, text in (
            ("package.json", json.dumps({"name": "demo", "version": "1.0.0"})),
            ("index.js", "module.exports = 1"),
        ):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    async with public(tmp_path) as port, fenced() as door:
        version = {
            "name": "demo", "version": "1.0.0",
            "dist": {
                "tarball": f"http://public.test:{port}/demo.tgz",
                "integrity": "sha512-" + base64.b64encode(hashlib.sha512(package.getvalue()).digest()).decode(),
            },
        }  # fmt: skip
        (tmp_path / "demo.tgz").write_bytes(package.getvalue())
        (tmp_path / "demo").write_text(
            json.dumps({"name": "demo", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}})
        )
        options = ("--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=0", "--cache", "cache")
        for host, works in (("public.test", True), ("secret.test", False)):
            (tmp_path / host).mkdir()
            (tmp_path / host / "package.json").write_text("{}")
            registry = f"--registry=http://{host}:{port}/"
            done, output = await run(
                door, tmp_path, "npm", "install", "--prefix", str(tmp_path / host), registry, *options, "demo"
            )
            assert done is works, output
        assert (tmp_path / "public.test" / "node_modules" / "demo" / "index.js").read_text() == "module.exports = 1"
        assert told(door) == BOTH
